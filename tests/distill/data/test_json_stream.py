import json
from pathlib import Path
from typing import Any

import pytest

from distill.data import json_stream
from distill.data.json_stream import iter_elements

ITEMS: list[Any] = [
    {"a": 'comma, "quote", ]} and \\', "b": [1, [2, {}]]},
    [],
    {},
    12345678,
    -0.5e3,
    "Größe \u2028 日本 \U0001f600",
    None,
    True,
    {"long": "x" * 500},
]


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
def test_elements_are_those_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, indent: int | None
) -> None:
    """At every size of the window, so that each kind of value is cut somewhere."""
    monkeypatch.setattr(json_stream, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / "list.json"
    path.write_text(" \n" + json.dumps(ITEMS, indent=indent, ensure_ascii=False) + "\n\n", encoding="utf-8")
    content = path.read_bytes()
    elements = list(iter_elements(path))
    assert [json.loads(element.content) for element in elements] == ITEMS
    assert [element.value for element in elements] == ITEMS
    for element in elements:
        assert content[element.offset :].startswith(element.content)
        assert element.line == content[: element.offset].count(b"\n") + 1


@pytest.mark.parametrize("block_bytes", [3, 2**20])
def test_every_list_of_an_object_comes_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(json_stream, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / "object.json"
    path.write_text(json.dumps({"info": {"year": [2017]}, "images": [1, 2], "none": [], "kinds": [{"id": 3}]}))
    found = [(element.key, element.value) for element in iter_elements(path)]
    assert found == [("images", 1), ("images", 2), ("kinds", {"id": 3})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x.json:1: not valid JSON: expected '\{', got ''"),
        ("[1,\n2", r"x.json:2: not valid JSON: expected ']', got ''"),
        ("[1 2]", r"x.json:1: not valid JSON: expected ']', got '2'"),
        ("[1,]", r"x.json:1: not valid JSON: "),
        ('[\n\n{"a": 1},\n{"a":\n oops}]', r"x.json:5: not valid JSON: Expecting value"),
        ('["open]', r"x.json:1: not valid JSON: Unterminated string"),
        ('{"a" [1]}', r"x.json:1: not valid JSON: expected ':', got '\['"),
        ("[1]\nmore", r"x.json:2: not valid JSON: expected 'the end', got 'm'"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(iter_elements(path))
