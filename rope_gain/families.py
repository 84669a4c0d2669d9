"""The model families that can carry a gain. One row here and one short module in `rope_gain.models` each.

This module stays free of torch and transformers: vLLM reads it in every process, before it needs either.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Where a family's decoder is, and which modules hold its adapters."""

    architecture: str
    """The stock class, in transformers and in vLLM, as config.json names it."""

    decoder: str
    """Path of the text decoder within the model, which is also the prefix of its weights."""

    adapter: str
    """The module of the Hugging Face adapter; its class has the name of `laid_architecture`."""

    @property
    def laid_architecture(self) -> str:
        """The name in the config.json of a checkpoint with gains, which stock engines do not know."""
        return f"LAid{self.architecture}"

    def gain_prefix(self, layer: int) -> str:
        """What precedes `.query_a` and the others in the names of a layer's gain tensors."""
        return f"{self.decoder}.layers.{layer}.self_attn.rope_gain"


FAMILIES = (
    Family(
        architecture="Qwen2_5_VLForConditionalGeneration",
        decoder="model.language_model",
        adapter="rope_gain.models.qwen2_5_vl",
    ),
)


def find_family(architecture: str) -> Family:
    """The family of a stock or a LAid architecture.

    Raises:
        ValueError: the architecture is not supported; the message lists those that are.
    """
    for family in FAMILIES:
        if architecture in (family.architecture, family.laid_architecture):
            return family
    supported = ", ".join(family.architecture for family in FAMILIES)
    raise ValueError(f"architecture: got {architecture!r}, expected one with support for gains: {supported}")
