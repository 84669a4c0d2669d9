import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.data.jsonl import JsonlSource
from distill.data.sample import Sample
from distill.recipe import DataConfig, JsonlData

RED = Image.new("RGB", (4, 4), (255, 0, 0))


def png() -> bytes:
    buffer = io.BytesIO()
    RED.save(buffer, "PNG")
    return buffer.getvalue()


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def line(parts: Any, answer: Any = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}


def make_source(path: Path, lines: list[Any], *, seed: int = 0, tokens_per_step: int = 100) -> JsonlSource:
    path.write_text("\n".join(json.dumps(each) for each in lines) + "\n")
    jsonl = JsonlData(path=str(path))
    config = DataConfig(tokens_per_step=tokens_per_step, max_samples_per_step=3, jsonl=jsonl)
    return JsonlSource(config, jsonl, seed=seed, count_tokens=count_words)


def count_words(sample: Sample) -> int:
    return len(sample.messages[0]["content"][-1]["text"].split())


def words(count: int, name: str) -> dict[str, Any]:
    return line([{"type": "text", "text": " ".join([name] * count)}])


def test_paths_and_data_urls(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    data_url = "data:image/png;base64," + base64.b64encode(png()).decode()
    parts = [image_part("red.png"), image_part(data_url), {"type": "text", "text": "same?"}]
    (sample,) = make_source(tmp_path / "data.jsonl", [line(parts)]).samples(0)
    assert [image.tobytes() for image in sample.images] == [RED.tobytes()] * 2
    assert sample.answer == "yes"
    assert sample.messages[0]["content"][2] == {"type": "text", "text": "same?"}
    assert sample.name.endswith("data.jsonl:1")


def test_every_epoch_meets_every_line_once_in_another_order(tmp_path: Path) -> None:
    """Twelve lines, three a step: four steps an epoch."""
    source = make_source(tmp_path / "data.jsonl", [words(5, f"w{index}") for index in range(12)])
    names = [[sample.name for sample in source.samples(step)] for step in range(8)]
    first, second = (list(itertools.chain(*epoch)) for epoch in (names[:4], names[4:]))
    assert len(set(first)) == 12
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_step_depends_on_its_number_and_the_seed_only(tmp_path: Path) -> None:
    lines = [words(5, f"w{index}") for index in range(12)]
    source = make_source(tmp_path / "data.jsonl", lines)
    names = [[sample.name for sample in source.samples(step)] for step in range(8)]
    again = make_source(tmp_path / "data.jsonl", lines)
    assert [[sample.name for sample in again.samples(step)] for step in (7, 0, 3)] == [names[7], names[0], names[3]]
    other = make_source(tmp_path / "data.jsonl", lines, seed=1)
    assert [[sample.name for sample in other.samples(step)] for step in range(8)] != names


def test_a_step_stays_within_the_budget(tmp_path: Path) -> None:
    lines = [words(count, "w") for count in (4, 4, 4, 4, 30, 9, 5)]
    source = make_source(tmp_path / "data.jsonl", lines, tokens_per_step=10)
    counts = sorted([count_words(sample) for sample in source.samples(step)] for step in range(5))
    # A sample longer than the budget comes alone.
    assert counts == [[4, 4], [4, 4], [5], [9], [30]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": "no"}, r"data.jsonl:2: expected .*messages.* in the OpenAI form"),
        (line("hello", answer=["no text"]), "data.jsonl:2: expected the last message to be the assistant's"),
        ({"messages": [{"role": "user", "content": "?"}]}, "data.jsonl:2: expected the last message"),
        (line([image_part("https://example.com/a.png")]), "data.jsonl:2: image_url: 'https.*expected a path"),
        (line([image_part("missing.png")]), "data.jsonl:2: .*missing.png"),
        (line([image_part("data:image/png;base64,AAAA")]), "data.jsonl:2: image_url: .*expected an image"),
        (line([image_part("data:image/png;base64,A")]), "data.jsonl:2: image_url: .*expected an image"),
        (line([{"type": "audio"}]), "data.jsonl:2: type: 'audio', expected 'text' or 'image_url'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_source(tmp_path / "data.jsonl", [words(3, "w"), bad])


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n{broken\n")
    config = DataConfig(tokens_per_step=10, jsonl=JsonlData(path=str(path)))
    with pytest.raises(ValueError, match=r"data.jsonl:2: Expecting property name"):
        JsonlSource(config, JsonlData(path=str(path)), seed=0, count_tokens=count_words)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no lines, expected at least one sample"):
        make_source(tmp_path / "data.jsonl", [])
