"""Hugging Face datasets in TRL's form for vision-language models: columns `messages` and `images`."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.data.images import image_ref
from distill.data.messages import parse_with_images
from distill.data.records import ImageRef, Place, TakeImage
from distill.data.sample import Sample
from distill.data.videos import check_record
from distill.recipe import HuggingFaceData


class HuggingFaceRecords:
    """Rows of a memory-mapped table; images stay encoded until they are taken."""

    form = "the columns messages and images"

    def __init__(self, data: HuggingFaceData) -> None:
        """Opens the dataset; one that is only on the Hub is fetched by `datasets` itself.

        Raises:
            ValueError: `datasets` is not installed, or the columns are missing.
        """
        self._data = data
        dataset = _open(data)
        if "messages" not in dataset.column_names:
            raise ValueError(
                f"data.hugging_face.path: {data.path}: columns {', '.join(dataset.column_names)}, "
                "expected messages and images"
            )
        # As Arrow gives it: formatted rows would have their images decoded, with no check of their size.
        self._rows = dataset.with_format("arrow")

    def scan(self) -> Iterator[Place]:
        """The places of all rows."""
        for row in range(len(self._rows)):
            yield Place(file=0, offset=row, num_bytes=0, number=row + 1)

    def name(self, place: Place) -> str:
        """Dataset, split and row, from 1."""
        return f"{self._data.path}[{self._data.split}]:{place.number}"

    def read(self, place: Place, take: TakeImage) -> Sample:
        """The sample of a row; raises as `Records.read`."""
        (record,) = self._rows[place.offset : place.offset + 1].to_pylist()
        check_record(record)
        images = [self._image(each) for each in record.get("images") or []]
        messages = _with_places(record["messages"], len(images))
        return parse_with_images(messages, images, take, self.name(place))

    def _image(self, image: Any) -> ImageRef:
        if isinstance(image, str):
            return image_ref(image, Path(self._data.path))
        content: bytes | None = image["bytes"]
        return image_ref(image["path"], Path(self._data.path)) if content is None else content


def _open(data: HuggingFaceData) -> Any:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError(
            "data.hugging_face: the package datasets is not installed; install it: pip install 'laid[datasets]'"
        ) from error
    saved = Path(data.path)
    if not (saved / "state.json").exists() and not (saved / "dataset_dict.json").exists():
        return datasets.load_dataset(data.path, split=data.split)
    dataset = datasets.load_from_disk(data.path)
    return dataset[data.split] if isinstance(dataset, datasets.DatasetDict) else dataset


def _with_places(messages: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """As TRL does: where no message has parts, the images come before the text of the first user message."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not users or not all(isinstance(message["content"], str) for message in messages):
        return messages
    first = messages[users[0]]
    content = [*({"type": "image"} for _ in range(num_images)), {"type": "text", "text": first["content"]}]
    return [*messages[: users[0]], {**first, "content": content}, *messages[users[0] + 1 :]]
