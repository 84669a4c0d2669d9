import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.data.bad_samples import BadSampleError
from distill.data.sample import Source
from distill.recipe import WebDatasetData


def messages(*parts: Any, answer: str = "yes") -> bytes:
    turns = [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}).encode()


QUESTION = {"type": "text", "text": "same?"}
IMAGE = {"type": "image"}


@pytest.fixture
def write_shard(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, files: dict[str, bytes], **options: Any) -> Path:
        with tarfile.open(tmp_path / name, options.pop("mode", "w"), **options) as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return tmp_path / name

    return write


@pytest.fixture
def open_shards(tmp_path: Path, open_source: Callable[..., Source]) -> Callable[..., Source]:
    return lambda *patterns, **settings: open_source(
        webdataset=WebDatasetData(shards=tuple(str(tmp_path / pattern) for pattern in patterns)), **settings
    )


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_files_with_one_key_are_a_sample(
    write_shard: Any, open_shards: Any, picture: Any, numbers: Any, format: int
) -> None:
    """Three ways to say where the images go; names long enough for tar's extended headers."""
    folder = "a.b/" if format == tarfile.USTAR_FORMAT else "a.b/" + "long" * 40 + "/"
    conversations = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "no"}]
    url = {"type": "image_url", "image_url": {"url": "left.PNG"}}
    write_shard(
        "0.tar",
        {
            f"{folder}1.json": messages(IMAGE, IMAGE, QUESTION),
            f"{folder}1.10.png": picture(1),
            f"{folder}1.9.png": picture(2),
            f"{folder}2.png": picture(3),
            f"{folder}2.second.jpg": picture(4),
            f"{folder}2.json": json.dumps({"conversations": conversations}).encode(),
            f"{folder}2.txt": b"ignored",
            f"{folder}._3.json": b"ignored",
        },
        format=format,
    )
    write_shard(
        "1.tar", {"1.left.PNG": picture(5), "1.right.png": picture(6), "1.json": messages(url, QUESTION)}, format=format
    )
    samples = sorted(open_shards("*.tar").samples(0), key=lambda sample: sample.name)
    assert [sample.name.rpartition("/")[2] for sample in samples] == ["0.tar:1", "0.tar:2", "1.tar:1"]
    assert [numbers(sample) for sample in samples] == [[1, 2], [3, 4], [5]]
    assert [sample.answer for sample in samples] == ["yes", "no", "yes"]


@pytest.mark.parametrize(
    ("files", "reason", "message"),
    [
        ({"1.png": b""}, "malformed", "files png, expected a .json"),
        ({"1.json": b"{"}, "malformed", "Expecting property name"),
        ({"1.json": b"{}"}, "malformed", "expected a .json with messages or conversations, and images"),
        ({"1.json": messages(IMAGE)}, "image count", "1 image placeholders for 0 images"),
        ({"1.json": messages(QUESTION), "1.png": b""}, "image count", "0 image placeholders for 1 images"),
        ({"1.json": messages(QUESTION), "1.clip.MP4": b"x"}, "video", "file clip.MP4: video: not supported"),
        ({"1.json": messages({"type": "video"})}, "video", "type: 'video': video: not supported"),
        ({"1.json": b'{"conversations": [], "video": "1"}'}, "video", "key 'video': video: not supported"),
        ({"1.json": messages(IMAGE), "1.png": b"x"}, "unreadable image", "1 bytes: expected an image"),
        (
            {"1.json": messages({"type": "image_url", "image_url": {"url": "2.png"}}), "1.1.png": b"x"},
            "missing image",
            "2.png: not in the shard, expected one of 1.png",
        ),
    ],
)
def test_a_bad_sample_is_named(
    write_shard: Any, open_shards: Any, files: dict[str, bytes], reason: str, message: str
) -> None:
    write_shard("0.tar", {"0.json": messages(QUESTION), **files})
    with pytest.raises(BadSampleError, match=f"0.tar:2: .*{message}") as caught:
        open_shards("0.tar")
    assert caught.value.reason == reason
    assert len(open_shards("0.tar", on_bad_sample="skip").samples(0)) == 1


def test_compressed_and_cut_off_shards_are_refused(write_shard: Any, open_shards: Any) -> None:
    files = {f"{number}.json": messages(QUESTION) for number in range(3)}
    write_shard("0.tar.gz", files, mode="w:gz")
    with pytest.raises(ValueError, match=r"0.tar.gz: .*expected a whole tar file without compression"):
        open_shards("0.tar.gz", on_bad_sample="skip")
    path = write_shard("1.tar", files)
    whole = path.read_bytes()
    # Inside a file, between two samples, and with a header that is not one.
    for damaged in (whole[:1600], whole[:2048], whole[:1024] + b"x" + whole[1025:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"1.tar: .*expected a whole tar file"):
            open_shards("1.tar", on_bad_sample="skip")


def test_a_pattern_without_files_is_refused(open_shards: Any) -> None:
    with pytest.raises(ValueError, match=r"data.webdataset.shards: .*nothing-\*.tar' matches no file"):
        open_shards("nothing-*.tar")
