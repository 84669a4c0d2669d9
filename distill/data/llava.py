"""LLaVA and ShareGPT conversations: <image> in the text stands for the next image of the sample."""

from pathlib import Path
from typing import Any

from distill.data.images import image_ref
from distill.data.json_file import JsonFile
from distill.data.messages import parse_with_images
from distill.data.records import Place, TakeImage
from distill.data.sample import Sample
from distill.data.videos import PLACEHOLDER as VIDEO_PLACEHOLDER
from distill.data.videos import check_record, not_supported
from distill.recipe import LlavaData

PLACEHOLDER = "<image>"

_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class LlavaRecords(JsonFile):
    """{"conversations": [{"from": "human", "value": ...}, ...], "image": a path or a list of them}."""

    form = '{"conversations": [{"from": ..., "value": ...}, ...], "image": ...}'

    def __init__(self, llava: LlavaData) -> None:
        super().__init__(Path(llava.path))
        self._image_folder = Path(llava.image_folder) if llava.image_folder else self.path.parent

    def read(self, place: Place, take: TakeImage) -> Sample:
        """The sample at a place; raises as `Records.read`."""
        record = self.record(place)
        check_record(record)
        images = [image_ref(url, self._image_folder) for url in _images(record)]
        return parse_with_images(openai_messages(record["conversations"]), images, take, self.name(place))


def openai_messages(conversations: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The same turns in the OpenAI form; as in Qwen-VL's own training, blanks around a placeholder are dropped.

    Raises:
        BadSampleError: a video has a place in it.
        ValueError, KeyError, TypeError, AttributeError: it is no such conversation.
    """
    return [_message(turn["from"], turn["value"]) for turn in conversations]


def _message(sender: str, text: str) -> dict[str, Any]:
    if sender not in _ROLES:
        raise ValueError(f"from: {sender!r}, expected one of {', '.join(_ROLES)}")
    if VIDEO_PLACEHOLDER in text:
        raise not_supported(VIDEO_PLACEHOLDER)
    if PLACEHOLDER not in text:
        return {"role": _ROLES[sender], "content": text}
    content: list[dict[str, str]] = []
    for index, segment in enumerate(text.split(PLACEHOLDER)):
        if index:
            content.append({"type": "image"})
        if segment.strip():
            content.append({"type": "text", "text": segment.strip()})
    return {"role": _ROLES[sender], "content": content}


def _images(record: dict[str, Any]) -> list[str]:
    images = record.get("image") or record.get("images") or []
    return [images] if isinstance(images, str) else images
