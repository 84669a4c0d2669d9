"""The model families whose image tokens can be counted: one short file each, and one entry here."""

from collections.abc import Callable

from server.families.image_rule import ImageRule
from server.families.internvl import read_internvl
from server.families.llava_onevision import read_llava_onevision
from server.families.processor_files import CheckpointError, ProcessorFiles, read_processor_files
from server.families.qwen_vl import read_qwen_vl

READERS: dict[str, Callable[[ProcessorFiles], ImageRule]] = {
    "qwen2_vl": read_qwen_vl,
    "qwen2_5_vl": read_qwen_vl,
    "qwen3_vl": read_qwen_vl,
    "internvl": read_internvl,
    "llava_onevision": read_llava_onevision,
}
"""By config.json's `model_type`."""

TEXT_MODELS = ("qwen2", "qwen3")
"""Without images there is nothing for the gateway to add: named only to be refused clearly."""

__all__ = ["READERS", "CheckpointError", "ImageRule", "ProcessorFiles", "read_image_rule", "read_processor_files"]


def read_image_rule(files: ProcessorFiles) -> ImageRule:
    """How this checkpoint's images become tokens.

    Raises:
        CheckpointError: a key is missing, or the family is not one of `READERS`.
    """
    model_type = files.config.get("model_type")
    if model_type not in READERS:
        what = (
            "is a text model's; serve it with vLLM alone"
            if model_type in TEXT_MODELS
            else 'is not known (README.md, "Add a family", says how it can be)'
        )
        raise files.error(
            "config.json", f"model_type {model_type!r} {what}; the gateway counts image tokens for {', '.join(READERS)}"
        )
    return READERS[model_type](files)
