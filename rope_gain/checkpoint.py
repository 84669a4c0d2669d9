"""Reads and writes checkpoint folders, with gains or without."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rope_gain import wheel_guard
from rope_gain.families import find_family
from rope_gain.layout import LAID_STEM, check_not_mixed, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_pretrained(folder: str | Path, **kwargs: Any) -> "PreTrainedModel":
    """Loads a Hugging Face model with its gains attached; a stock checkpoint gives the stock model.

    The gains are float32 whatever the dtype of the weights.

    Args:
        folder: a local checkpoint folder of a supported family.
        **kwargs: those of transformers' `from_pretrained` (dtype, attn_implementation, device_map ...).

    Raises:
        ValueError: the architecture is not supported, the `rope_gain` block is wrong or is there in a stock
            checkpoint, or a gain tensor is missing or has a shape that does not fit the model.
    """
    wheel_guard.install()
    import transformers

    from rope_gain.hugging_face import laid_class

    folder = Path(folder)
    config = read_config(folder)
    [architecture] = config["architectures"]
    family = find_family(architecture)
    has_gains = architecture == family.laid_architecture
    if has_gains != ("rope_gain" in config):
        expected = "with" if has_gains else "without"
        raise ValueError(f"{folder}/config.json: architecture {architecture} goes {expected} a rope_gain block")
    model_class = laid_class(family) if has_gains else getattr(transformers, architecture)
    model: PreTrainedModel = model_class.from_pretrained(folder, **kwargs)
    return model


def save_pretrained(model: "PreTrainedModel", folder: str | Path) -> None:
    """Writes a checkpoint folder: LAid's layout if the model has gains, the stock one if not.

    A stock model's weights get the names that both transformers and vLLM's stock class know. The processor and the
    tokenizer are saved by their own methods, into the same folder.

    Raises:
        ValueError: the model's class is not supported, or the folder holds the weights of a checkpoint of the
            other kind.
    """
    family = find_family(type(model).__name__)
    if type(model).__name__ == family.laid_architecture:
        model.save_pretrained(folder)
        return
    check_not_mixed(Path(folder), LAID_STEM)
    weights = model.state_dict()
    for own, stock in family.vllm_renames:
        weights = {
            stock + name.removeprefix(own) if name.startswith(own) else name: weight for name, weight in weights.items()
        }
    model.save_pretrained(folder, state_dict=weights)
