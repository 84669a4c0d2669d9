"""The model families that can carry a gain: one short file each, and one entry here.

This package stays free of torch, transformers and vllm: vLLM reads it in every process, before it needs any.
"""

from rope_gain.families.family import Family
from rope_gain.families.internvl import INTERNVL
from rope_gain.families.llava_onevision import LLAVA_ONEVISION
from rope_gain.families.qwen2 import QWEN2
from rope_gain.families.qwen2_5_vl import QWEN2_5_VL
from rope_gain.families.qwen2_vl import QWEN2_VL
from rope_gain.families.qwen3 import QWEN3
from rope_gain.families.qwen3_vl import QWEN3_VL

__all__ = ["FAMILIES", "Family", "find_family"]

FAMILIES = (QWEN2, QWEN3, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, INTERNVL, LLAVA_ONEVISION)


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
