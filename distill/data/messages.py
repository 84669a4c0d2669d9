"""Conversations in the OpenAI form, with images in their parts or in a list of their own."""

from collections.abc import Callable, Sequence
from typing import Any

from distill.data.bad_samples import BadSampleError
from distill.data.records import ImageRef, TakeImage
from distill.data.sample import Sample
from distill.data.videos import check_messages

TakePart = Callable[[dict[str, Any]], Any]
"""Turns a part that is no text into what the sample shall hold for it."""

_ROLES = ("system", "user", "assistant")


def parse_messages(messages: list[dict[str, Any]], take_part: TakePart, name: str) -> Sample:
    """The sample of a conversation whose last message is the answer.

    Raises:
        BadSampleError, ValueError, KeyError, TypeError: it is no such conversation, it has a video, or an image cannot
            be taken.
    """
    *prompt, last = messages
    check_messages(prompt)
    answer = _text(last["content"]) if last["role"] == "assistant" else None
    if answer is None:
        raise ValueError("expected the last message to be the assistant's, with text as its content")
    if not prompt:
        raise ValueError("expected a message before the assistant's")
    return Sample(messages=tuple(_message(message, take_part) for message in prompt), answer=answer, name=name)


def parse_with_images(messages: list[dict[str, Any]], images: Sequence[ImageRef], take: TakeImage, name: str) -> Sample:
    """The same for a conversation with {"type": "image"} where an image of the list goes, in order.

    Raises:
        BadSampleError: also if there are not as many places as images.
    """
    check_messages(messages)
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    num_places = sum(part["type"] == "image" for content in contents for part in content)
    if num_places != len(images):
        raise BadSampleError("image count", f"{num_places} image placeholders for {len(images)} images")
    remaining = iter(images)

    def take_part(part: dict[str, Any]) -> Any:
        if part["type"] != "image":
            raise ValueError(f"type: {part['type']!r}, expected 'text' or 'image'")
        return take(next(remaining))

    return parse_messages(messages, take_part, name)


def _message(message: dict[str, Any], take_part: TakePart) -> dict[str, Any]:
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise ValueError(f"role: {role!r}, expected one of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        content = [_part(part, take_part) for part in content]
    return {"role": role, "content": content}


def _part(part: dict[str, Any], take_part: TakePart) -> dict[str, Any]:
    if part["type"] != "text":
        return {"type": "image", "image": take_part(part)}
    if not isinstance(part["text"], str):
        raise ValueError(f"text: {part['text']!r}, expected a string")
    return {"type": "text", "text": part["text"]}


def _text(content: Any) -> str | None:
    """The text of a string or of parts that are all text; None for anything else."""
    if isinstance(content, str):
        return content
    is_text = isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    )
    return "".join(part["text"] for part in content) if is_text else None
