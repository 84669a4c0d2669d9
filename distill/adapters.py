"""Low-rank adapters on a student, through PEFT."""

import re
from typing import TYPE_CHECKING, Any

from distill.recipe import LoraConfig
from rope_gain import gain_modules
from rope_gain.families import find_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_adapters(model: "PreTrainedModel", config: LoraConfig) -> Any:
    """Puts an adapter beside each target in the decoder; the adapters and the gains are all that is trained.

    The model stays usable as it is: its linear layers are replaced in place.

    Returns:
        The `peft.PeftModel` around it, for `merge_adapters`.

    Raises:
        ValueError: the decoder has no layer of the given names.
    """
    import peft

    decoder = re.escape(find_family(type(model).__name__).decoder)
    names = "|".join(re.escape(target) for target in config.targets)
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            # A vision tower has layers of the same names, which a plain list of names would match too.
            target_modules=rf"{decoder}\..*\.({names})",
        ),
    )
    for gain in gain_modules(model).values():
        gain.requires_grad_(True)
    return adapted


def merge_adapters(adapted: Any) -> None:
    """Adds the adapters' products to the weights and takes them out: the model is plain again."""
    adapted.merge_and_unload()
