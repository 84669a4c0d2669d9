import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.data.bad_samples import BadSampleError
from distill.data.sample import Source
from distill.recipe import LlavaData


def record(*values: str, **keys: Any) -> dict[str, Any]:
    senders = ("human", "gpt")
    turns = [{"from": senders[index % 2], "value": value} for index, value in enumerate(values)]
    return {"id": "0", "conversations": turns, **keys}


@pytest.fixture
def folder(tmp_path: Path, picture: Any) -> Path:
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    return tmp_path


@pytest.fixture
def open_records(folder: Path, open_source: Callable[..., Source]) -> Callable[..., Source]:
    def open_them(*records: Any, as_list: bool = True) -> Source:
        path = folder / "data.json"
        text = ",\n".join(json.dumps(each, ensure_ascii=False) for each in records)
        path.write_text(f"[\n{text}\n]" if as_list else text.replace(",\n", "\n"), encoding="utf-8")
        return open_source(llava=LlavaData(path=str(path)))

    return open_them


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "lines"])
def test_placeholders_become_images_in_order(open_records: Any, numbers: Any, as_list: bool) -> None:
    one = record("<image>\nWhat is this? Größe?", "日本", image="2.png")
    many = record("<image>\n<image>\nbefore <image> after", "yes", image=["3.png", "1.png", "2.png"])
    first, second = sorted(open_records(one, many, as_list=as_list).samples(0), key=lambda sample: sample.name)
    assert first.name.endswith("data.json:2" if as_list else "data.json:1")
    assert numbers(first) == [2]
    assert first.answer == "日本"
    image, text = first.messages[0]["content"]
    assert (image["type"], text) == ("image", {"type": "text", "text": "What is this? Größe?"})
    assert numbers(second) == [3, 1, 2]
    parts = [part.get("text", "image") for part in second.messages[0]["content"]]
    assert parts == ["image", "image", "before", "image", "after"]


def test_earlier_turns_are_context_and_text_needs_no_image(open_records: Any) -> None:
    system = {"from": "system", "value": "be brief"}
    turns = record("one?", "1", "two?", "2")["conversations"]
    (sample,) = open_records({"conversations": [system, *turns], "image": None}).samples(0)
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant", "user"]
    assert sample.messages[3]["content"] == "two?"
    assert sample.answer == "2"


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (record("<image> what?", "a"), "image count", "1 image placeholders for 0 images"),
        (record("what?", "a", image="1.png"), "image count", "0 image placeholders for 1 images"),
        (record("<image>", "a", image=["1.png", "2.png"]), "image count", "1 image placeholders for 2 images"),
        (record("<image>", "a", image="4.png"), "missing image", r"4.png: no such file"),
        (record("what?", "a", video="1.mp4"), "video", "key 'video': video: not supported, expected text and images"),
        (record("<image> what?", "a", videos=["1.mp4"]), "video", "key 'videos': video: not supported"),
        (record("<video> what?", "a"), "video", "<video>: video: not supported"),
        (record("a", "b", "c"), "malformed", "expected the last message to be the assistant's"),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, "malformed", "from: 'robot', expected one of"),
        ({"conversations": [{"value": "hi"}]}, "malformed", "expected .*conversations.*KeyError"),
        ({"conversations": [{"from": "gpt", "value": 5}]}, "malformed", "expected .*conversations"),
        ("text", "malformed", "expected .*conversations"),
    ],
)
def test_a_bad_record_is_named(open_records: Any, bad: Any, reason: str, message: str) -> None:
    with pytest.raises(BadSampleError, match=f"data.json:3: .*{message}") as caught:
        open_records(record("fine?", "yes"), bad)
    assert caught.value.reason == reason


def test_a_broken_list_cannot_be_skipped_over(folder: Path, open_source: Any) -> None:
    path = folder / "data.json"
    path.write_text('[\n{"conversations": []},\n{"conversations"}\n]')
    with pytest.raises(ValueError, match=r"data.json:3: not valid JSON: Expecting ':' delimiter"):
        open_source(llava=LlavaData(path=str(path)), on_bad_sample="skip")
