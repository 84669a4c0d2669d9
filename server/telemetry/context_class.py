"""The one bounded label that keeps short and long prompts apart in latencies and errors."""

from enum import StrEnum


class ContextClass(StrEnum):
    """Length class of a prompt; k is 1,024 tokens."""

    UNDER_8K = "<8k"
    UNDER_32K = "8-32k"
    UNDER_64K = "32-64k"
    UNDER_128K = "64-128k"
    LONGER = ">128k"
    UNCOUNTED = "uncounted"
    """Failed before its tokens were counted: a label of errors only."""


COUNTED: tuple[ContextClass, ...] = tuple(ContextClass)[:-1]
_LIMITS = (
    (8 * 1024, ContextClass.UNDER_8K),
    (32 * 1024, ContextClass.UNDER_32K),
    (64 * 1024, ContextClass.UNDER_64K),
    (128 * 1024, ContextClass.UNDER_128K),
)


def context_class_of(prompt_tokens: int) -> ContextClass:
    """The class of a prompt of so many tokens; a limit itself belongs to the class above it, but for the last."""
    for limit, context_class in _LIMITS[:-1]:
        if prompt_tokens < limit:
            return context_class
    # A model of 131,072 positions has no prompt beyond them: its longest prompts are of the class that names 128k.
    return ContextClass.UNDER_128K if prompt_tokens <= _LIMITS[-1][0] else ContextClass.LONGER
