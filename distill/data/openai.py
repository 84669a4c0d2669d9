"""OpenAI messages, one sample a line."""

from pathlib import Path
from typing import Any

from distill.data.images import image_ref
from distill.data.json_file import JsonFile
from distill.data.messages import parse_messages
from distill.data.records import Place, TakeImage
from distill.data.sample import Sample
from distill.data.videos import check_record
from distill.recipe import JsonlData


class OpenAiRecords(JsonFile):
    """{"messages": [...]}, with images as image_url parts: paths, data URLs, or URLs of allowed hosts."""

    form = '{"messages": [...]} in the OpenAI form'

    def __init__(self, jsonl: JsonlData) -> None:
        super().__init__(Path(jsonl.path))
        self._image_folder = Path(jsonl.image_folder) if jsonl.image_folder else self.path.parent

    def read(self, place: Place, take: TakeImage) -> Sample:
        """The sample of a line; raises as `Records.read`."""

        def take_part(part: dict[str, Any]) -> Any:
            if part["type"] != "image_url":
                raise ValueError(f"type: {part['type']!r}, expected 'text' or 'image_url'")
            return take(image_ref(part["image_url"]["url"], self._image_folder))

        record = self.record(place)
        messages = record["messages"]
        check_record(record)
        return parse_messages(messages, take_part, self.name(place))
