import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.data.sample import Source
from distill.recipe import JsonlData


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def line(parts: Any, answer: Any = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def open_lines(write_lines: Callable[..., Path], open_source: Callable[..., Source]) -> Callable[..., Source]:
    return lambda *lines: open_source(jsonl=JsonlData(path=str(write_lines("data.jsonl", list(lines)))))


def test_paths_and_data_urls(open_lines: Any, picture: Any, numbers: Any, tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(picture(7))
    data_url = "data:image/png;base64," + base64.b64encode(picture(9)).decode()
    parts = [image_part("7.png"), image_part(data_url), {"type": "text", "text": "same?"}]
    (sample,) = open_lines(line(parts)).samples(0)
    assert numbers(sample) == [7, 9]
    assert sample.answer == "yes"
    assert sample.messages[0]["content"][2] == {"type": "text", "text": "same?"}
    assert sample.name.endswith("data.jsonl:1")


def test_images_can_lie_in_a_folder_of_their_own(
    write_lines: Any, open_source: Any, picture: Any, numbers: Any, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "5.png").write_bytes(picture(5))
    path = write_lines("data.jsonl", [line([image_part("5.png")])])
    (sample,) = open_source(jsonl=JsonlData(path=str(path), image_folder=str(tmp_path / "photos"))).samples(0)
    assert numbers(sample) == [5]


def test_earlier_turns_are_context_and_an_answer_may_come_in_parts(open_lines: Any) -> None:
    turns = [("system", "be brief"), ("user", "one?"), ("assistant", "1"), ("user", "two?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "!"}]}
    (sample,) = open_lines({"messages": [*messages, answer]}).samples(0)
    assert list(sample.messages) == messages
    assert sample.answer == "2!"


def test_a_list_in_one_file_is_read_too(tmp_path: Path, open_source: Any) -> None:
    path = tmp_path / "data.json"
    path.write_text(f"[\n{json.dumps(line('a?'))},\n\n{json.dumps(line('b?'))}]")
    names = [sample.name for sample in open_source(jsonl=JsonlData(path=str(path))).samples(0)]
    assert sorted(names) == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{broken", "data.jsonl:2: Expecting property name"),
        ({"text": "no"}, r"data.jsonl:2: expected .*messages.* in the OpenAI form"),
        ("[" * 100_000, r"data.jsonl:2: expected .*messages.* in the OpenAI form"),
        (line([image_part("x" * 300)]), "data.jsonl:2: .*xxx: File name too long"),
        (line([image_part("a\0b")]), "data.jsonl:2: .*b: no such file"),
        (["messages"], r"data.jsonl:2: expected .*messages.* in the OpenAI form"),
        (line("hello", answer=["no text"]), "data.jsonl:2: expected the last message to be the assistant's"),
        (line("hello", answer=None), "data.jsonl:2: expected the last message to be the assistant's"),
        ({"messages": [{"role": "user", "content": "?"}]}, "data.jsonl:2: expected the last message"),
        ({"messages": [{"role": "assistant", "content": "?"}]}, "data.jsonl:2: expected a message before"),
        ({"messages": []}, "data.jsonl:2: "),
        (line([image_part("https://example.com/a.png")]), "data.jsonl:2: image_url: 'https.*expected a path"),
        (line([image_part("file:///etc/hosts")]), "data.jsonl:2: image_url: 'file.*expected a path"),
        (line([image_part("missing.png")]), "data.jsonl:2: .*missing.png: no such file"),
        (line([image_part("data:image/png;base64,AAAA")]), "data.jsonl:2: image: data:.*expected an image"),
        (line([image_part("data:image/png;base64,A")]), "data.jsonl:2: image: data:.*expected an image"),
        (
            line([{"type": "video_url", "video_url": {"url": "1.mp4"}}]),
            "data.jsonl:2: type: 'video_url': video: not",
        ),
        (line([{"type": "video", "video": "1.mp4"}]), "data.jsonl:2: type: 'video': video: not supported"),
        (line("what?") | {"videos": ["1.mp4"]}, "data.jsonl:2: key 'videos': video: not supported"),
        (line([{"type": "audio"}]), "data.jsonl:2: type: 'audio', expected 'text' or 'image_url'"),
        (line([{"type": "text", "text": 5}]), "data.jsonl:2: text: 5, expected a string"),
    ],
)
def test_a_bad_line_is_named(open_lines: Any, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_lines(line("fine?"), bad)
