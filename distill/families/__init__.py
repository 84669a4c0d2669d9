"""The model families that can be teachers and students: one short file each, and one entry here."""

from typing import Any

from distill.families.family import Family
from distill.families.internvl import InternVl
from distill.families.qwen_vl import QwenVl

__all__ = ["ARCHITECTURES", "FAMILIES", "Family", "find_family", "processor_family"]

FAMILIES: tuple[Family, ...] = (QwenVl(), InternVl())

ARCHITECTURES = tuple(name for family in FAMILIES for name in family.architectures)


def find_family(model: Any) -> Family:
    """The family of a model, stock or with gains.

    Raises:
        ValueError: it cannot be distilled; the message lists those that can.
    """
    architecture = type(model).__name__.removeprefix("LAid")
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    raise ValueError(f"got {architecture}, expected one that can be distilled: {', '.join(ARCHITECTURES)}")


def processor_family(processor: Any) -> Family:
    """The family that a processor prepares samples for.

    Raises:
        ValueError: it cannot be distilled; the message lists those that can.
    """
    name = type(processor).__name__
    for family in FAMILIES:
        if name in family.processors:
            return family
    known = ", ".join(each for family in FAMILIES for each in family.processors)
    raise ValueError(f"processor: got {name}, expected that of a family that can be distilled: {known}")
