"""Videos, which nothing here can show to a model: a sample with one is refused, so that none is lost unnoticed."""

from collections.abc import Iterable
from typing import Any

from distill.data.bad_samples import BadSampleError

PLACEHOLDER = "<video>"
"""Stands for a video in the text of LLaVA and ShareGPT conversations."""

_KEYS = ("video", "videos")
_TYPES = ("video", "video_url", "input_video")
_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")


def check_record(record: dict[str, Any]) -> None:
    """Refuses a sample that names videos beside its conversation.

    Raises:
        BadSampleError: it does.
    """
    for key in _KEYS:
        if record.get(key):
            raise not_supported(f"key {key!r}")


def check_messages(messages: Iterable[dict[str, Any]]) -> None:
    """Refuses a conversation with a video among its parts.

    Raises:
        BadSampleError: there is one.
    """
    for message in messages:
        if isinstance(message["content"], str):
            continue
        for part in message["content"]:
            if part["type"] in _TYPES:
                raise not_supported(f"type: {part['type']!r}")


def check_files(names: Iterable[str]) -> None:
    """Refuses a sample that has a video file.

    Raises:
        BadSampleError: it has one.
    """
    for name in names:
        if f".{name.lower()}".endswith(_SUFFIXES):
            raise not_supported(f"file {name}")


def not_supported(place: str) -> BadSampleError:
    """The error for a video at this place of a sample."""
    return BadSampleError(
        "video", f"{place}: video: not supported, expected text and images; single frames can be given as images"
    )
