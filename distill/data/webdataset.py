"""WebDataset shards: tar files in which a sample's .json is followed or preceded by its images.

Read with the standard library: the webdataset package streams its shards in one order, and a step that is a pure
function of its number needs any sample at any time.
"""

import glob
import io
import json
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from distill.data.bad_samples import BadSampleError
from distill.data.llava import openai_messages
from distill.data.messages import parse_messages, parse_with_images
from distill.data.records import Place, TakeImage
from distill.data.sample import Sample
from distill.data.videos import check_files, check_record
from distill.recipe import WebDatasetData

# A sample's files share their path up to the first dot of the file's name.
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class WebDatasetRecords:
    """Samples by their place in a shard; nothing but places stays in memory."""

    form = "a .json with messages or conversations, and images"

    def __init__(self, data: WebDatasetData) -> None:
        """Finds the shards.

        Raises:
            ValueError: a pattern matches no file.
        """
        self._shards: list[Path] = []
        for pattern in data.shards:
            found = sorted(glob.glob(pattern))  # noqa: PTH207  # patterns may be absolute
            if not found:
                raise ValueError(f"data.webdataset.shards: {pattern!r} matches no file")
            self._shards.extend(Path(path) for path in found)

    def scan(self) -> Iterator[Place]:
        """The places of all samples, shard by shard.

        Raises:
            ValueError: a shard is cut off, or no plain tar file.
        """
        for index, shard in enumerate(self._shards):
            try:
                yield from _scan_shard(index, shard)
            except tarfile.TarError as error:
                raise ValueError(f"{shard}: {error}, expected a whole tar file without compression") from error

    def name(self, place: Place) -> str:
        """Shard and number of the sample in it, from 1."""
        return f"{self._shards[place.file]}:{place.number}"

    def read(self, place: Place, take: TakeImage) -> Sample:
        """The sample at a place; raises as `Records.read`."""
        with self._shards[place.file].open("rb") as file:
            file.seek(place.offset)
            members = _members(file.read(place.num_bytes))
        if "json" not in members:
            raise ValueError(f"files {', '.join(members)}, expected a .json with messages or conversations")
        check_files(members)
        record = json.loads(members["json"])
        check_record(record)
        messages = record["messages"] if "messages" in record else openai_messages(record["conversations"])
        images = {name: content for name, content in members.items() if f".{name.lower()}".endswith(_IMAGES)}
        if not _names_images(messages):
            return parse_with_images(messages, list(images.values()), take, self.name(place))

        def take_part(part: dict[str, Any]) -> Any:
            if part["type"] != "image_url":
                raise ValueError(f"type: {part['type']!r}, expected 'text' or 'image_url'")
            url = part["image_url"]["url"]
            if url not in images:
                raise BadSampleError("missing image", f"{url}: not in the shard, expected one of {', '.join(images)}")
            return take(images[url])

        return parse_messages(messages, take_part, self.name(place))


def _scan_shard(index: int, shard: Path) -> Iterator[Place]:
    with tarfile.open(shard, "r:") as tar:
        files = ((match[1], info.offset) for info in tar if info.isfile() and (match := _KEY.fullmatch(info.name)))
        starts = [next(group)[1] for _, group in groupby(files, key=lambda each: each[0])]
        ends = [*starts[1:], tar.offset]
    with shard.open("rb") as file:
        file.seek(tar.offset)
        # tarfile takes a damaged header for the end, and what follows would be lost without a word.
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        yield Place(file=index, offset=start, num_bytes=end - start, number=number)


def _members(content: bytes) -> dict[str, bytes]:
    """The files of a sample by what follows the first dot of their names, in order."""
    members = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for info in tar:
            match = _KEY.fullmatch(info.name)
            file = tar.extractfile(info)
            if match is not None and file is not None:
                members[match[2]] = file.read()
    return members


def _names_images(messages: list[dict[str, Any]]) -> bool:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return any(part["type"] == "image_url" for content in contents for part in content)
