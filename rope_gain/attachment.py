"""Puts gains into a Hugging Face model, and takes them out again."""

from typing import TYPE_CHECKING, Any

from torch import nn

from rope_gain.config import RopeGainConfig
from rope_gain.families import Family, find_family
from rope_gain.gain import RopeGain

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attach(model: "PreTrainedModel", config: RopeGainConfig) -> None:
    """Gives the model a gain of 1 in every layer that `config` names; its outputs stay the same, bit for bit.

    Each layer's parameters are registered as `self_attn.rope_gain`, so they show in `parameters()` and
    `state_dict()`. The change is in place and in this model only: its rotary embedding, its decoder's
    attention layers and the model itself become instances of subclasses, which keeps every weight, hook and
    name.

    Args:
        model: a transformers model of one of `rope_gain.families.FAMILIES`, with any attention implementation.
        config: shape, target and position law of the gains.

    Raises:
        ValueError: the model's class or its decoder's is not supported, it has gains already, or `config.layers`
            names a layer that the model does not have.
    """
    family = find_family(type(model).__name__)
    if type(model).__name__ != family.architecture:
        raise ValueError("model: it has gains already; detach them first")
    install(model, family, config)
    swap_classes(model, family)


def detach(model: "PreTrainedModel") -> None:
    """Takes the gains out: the model is the stock one again, with the weights it has now.

    Raises:
        ValueError: the model has no gains.
    """
    family = find_family(type(model).__name__)
    if type(model).__name__ != family.laid_architecture:
        raise ValueError("model: it has no gains to detach")
    for layer in decoder_layers(model, family):
        del layer.self_attn.rope_gain
    del model.config.rope_gain
    swap_classes(model, family, back=True)


def gain_modules(model: "PreTrainedModel") -> dict[int, RopeGain]:
    """The gain of each decoder layer that has one, by the layer's number; empty for a stock model.

    Raises:
        ValueError: the model's class is not supported.
    """
    family = find_family(type(model).__name__)
    gains = (getattr(layer.self_attn, "rope_gain", None) for layer in decoder_layers(model, family))
    return {number: gain for number, gain in enumerate(gains) if gain is not None}


def install(model: "PreTrainedModel", family: Family, config: RopeGainConfig) -> None:
    """Registers the gain parameters and records the configuration; the classes are the caller's to swap.

    Raises:
        ValueError: the decoder is not the family's, or the configuration does not fit it. The model is as it was.
    """
    layers = decoder_layers(model, family)
    _check_decoder(layers, family)
    gained = config.gained_layers(len(layers))
    for number, layer in enumerate(layers):
        attention = layer.self_attn
        attention.register_module("rope_gain", _make_gain(attention, config) if number in gained else None)
    # Saved with the model's own configuration, where every loader looks for it.
    model.config.rope_gain = config.to_dict()


def decoder_layers(model: "PreTrainedModel", family: Family) -> Any:
    """The text decoder's layers, in order."""
    return model.get_submodule(family.decoder).layers


def swap_classes(model: nn.Module, family: Family, *, back: bool = False) -> None:
    """Makes every module of one of the family's stock classes an instance of its subclass with gains, or back."""
    from rope_gain.hugging_face import gained_classes

    classes = gained_classes(family)
    if back:
        classes = {gained: stock for stock, gained in classes.items()}
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))


def _check_decoder(layers: Any, family: Family) -> None:
    """Some families take any text model for their decoder; one of another class would keep its own forward."""
    from rope_gain.hugging_face import load_class

    expected = load_class(family.attention)
    for number, layer in enumerate(layers):
        if type(layer.self_attn) is not expected:
            raise ValueError(
                f"model: layers.{number}.self_attn of its decoder is a {type(layer.self_attn).__name__}, expected "
                f"{expected.__name__}: gains in {family.architecture} are supported over that decoder alone"
            )


def _make_gain(attention: Any, config: RopeGainConfig) -> RopeGain:
    return RopeGain(
        config,
        num_heads=attention.config.num_attention_heads,
        num_key_value_heads=attention.config.num_key_value_heads,
        head_dim=attention.head_dim,
        device=attention.q_proj.weight.device,
    )
