"""What the LAid class of a family adds to the stock one: it builds, loads and saves the gains."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rope_gain.attachment import install, swap_classes
from rope_gain.config import RopeGainConfig
from rope_gain.families import find_family
from rope_gain.layout import STOCK_STEM, check_gain_tensors, check_not_mixed, publish, weights_entry

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object


class LAidModel(_Base):
    """Mixed in before a stock `PreTrainedModel` class, under the architecture's name in LAid checkpoints."""

    # from_pretrained(dtype=bfloat16) casts the weights and leaves these in float32.
    _keep_in_fp32_modules_strict = frozenset({"rope_gain"})

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        family = find_family(type(self).__name__)
        install(self, family, RopeGainConfig.from_dict(config.rope_gain))
        swap_classes(self, family)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Self:
        """Loads a LAid checkpoint folder; keyword arguments as transformers' method of this name.

        Raises:
            ValueError: the gain tensors do not fit the configuration and the model's sizes.
            FileNotFoundError: the folder has no `laid.safetensors`.
        """
        folder = Path(folder)
        config = cls.config_class.from_pretrained(folder)
        gain_config = RopeGainConfig.from_dict(config.rope_gain)
        text = config.get_text_config()
        shapes = gain_config.gain_shapes(
            num_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        )
        check_gain_tensors(
            folder, find_family(cls.__name__), gain_config, num_layers=text.num_hidden_layers, shapes=shapes
        )
        # What PreTrainedModel.from_pretrained opens; transformers leaves it out when it saves the config.
        config.transformers_weights = weights_entry(folder)
        model: Self = super().from_pretrained(folder, config=config, **kwargs)
        return model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes a LAid checkpoint folder; keyword arguments as transformers' method of this name.

        Raises:
            ValueError: the folder holds a stock checkpoint's weights, or the upload to a hub is asked for,
                which would give the weights the stock name.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("push_to_hub: not supported for checkpoints with gains; upload the saved folder")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        check_not_mixed(folder, STOCK_STEM)
        # Beside its destination, so that each file moves in one step and no stock name ever shows there.
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as staging:
            # A model that was loaded would be saved under older names of its weights, which the gains' do not fit.
            super().save_pretrained(staging, **{**kwargs, "save_original_format": False})
            publish(Path(staging), folder)
