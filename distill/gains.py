"""The gains of a checkpoint folder, read without its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from distill.checkpoint import read_laid
from rope_gain import RopeGain, RopeGainConfig, wheel_guard
from rope_gain.families import Family, find_family
from rope_gain.layout import LAID_STEM, check_gain_tensors, read_config


@dataclass(frozen=True, kw_only=True)
class CheckpointGains:
    """What a checkpoint with gains says of them."""

    family: Family
    config: RopeGainConfig
    text_config: Any
    """transformers' configuration of the text decoder."""
    layers: dict[int, RopeGain]
    """By the layer's number."""
    has_norm: bool
    """Whether a norm sits between projection and rotation."""


def read_gains(checkpoint: Path) -> CheckpointGains:
    """Reads the configuration, the headers of the weight files and the gain tensors.

    Raises:
        ValueError: the checkpoint has no gains, its architecture is not supported, or the gain tensors do not fit the
            configuration and the model's sizes.
        FileNotFoundError: there is no config.json.
    """
    raw = read_config(checkpoint)
    if "rope_gain" not in raw:
        raise ValueError(_describe_stock(checkpoint))
    [architecture] = raw["architectures"]
    family, config = find_family(architecture), RopeGainConfig.from_dict(raw["rope_gain"])
    wheel_guard.install()
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(checkpoint).get_text_config()
    sizes = {
        "num_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
    }
    check_gain_tensors(
        checkpoint, family, config, num_layers=text.num_hidden_layers, shapes=config.gain_shapes(**sizes)
    )
    layers = {number: RopeGain(config, **sizes) for number in config.gained_layers(text.num_hidden_layers)}
    return CheckpointGains(
        family=family,
        config=config,
        text_config=text,
        layers=layers,
        has_norm=_fill(layers, checkpoint, family),
    )


def _fill(layers: dict[int, RopeGain], checkpoint: Path, family: Family) -> bool:
    """Copies the tensors into the gains; tells whether the files hold norms of queries."""
    parameters = {
        f"{family.gain_prefix(number)}.{name}": parameter
        for number, gain in layers.items()
        for name, parameter in gain.named_parameters()
    }
    norm, has_norm = f"{family.decoder}.layers.0.self_attn.q_norm.weight", False
    for file in checkpoint.glob(f"{LAID_STEM}*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            has_norm = has_norm or norm in names
            for name in names & parameters.keys():
                parameters[name].data.copy_(tensors.get_tensor(name))
    return has_norm


def _describe_stock(checkpoint: Path) -> str:
    message = f"{checkpoint}: a stock checkpoint without gains, expected one with gains, as 'distill train' writes it"
    folded = (read_laid(checkpoint) or {}).get("folded")
    if folded:
        message += f"; its gains were folded into its weights and are still in {folded['source']['path']}"
    return message
