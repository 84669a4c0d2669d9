"""Steps, epochs and the policy for bad samples, on lines of text."""

import itertools
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.data.bad_samples import BadSampleError, Tally
from distill.data.sample import Source
from distill.loading import make_source
from distill.recipe import DataConfig, JsonlData


def line(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "yes"}]}


def words(count: int, word: str = "w") -> dict[str, Any]:
    return line({"type": "text", "text": " ".join([word] * count)})


def photo(url: str) -> dict[str, Any]:
    return line({"type": "image_url", "image_url": {"url": url}})


@pytest.fixture
def open_lines(write_lines: Callable[..., Path], open_source: Callable[..., Source]) -> Callable[..., Source]:
    def open_them(lines: list[Any], **settings: Any) -> Source:
        return open_source(jsonl=JsonlData(path=str(write_lines("data.jsonl", lines))), **settings)

    return open_them


def names(source: Source, steps: range) -> list[list[str]]:
    return [[sample.name.rpartition(":")[2] for sample in source.samples(step)] for step in steps]


def test_every_epoch_meets_every_sample_once_in_another_order(open_lines: Any) -> None:
    """Twelve lines, three a step: four steps an epoch."""
    met = names(open_lines([words(5)] * 12), range(8))
    first, second = (list(itertools.chain(*epoch)) for epoch in (met[:4], met[4:]))
    assert sorted(first) == sorted(second) == sorted(str(number) for number in range(1, 13))
    assert first != second


def test_a_step_depends_on_its_number_and_the_seed_only(open_lines: Any) -> None:
    lines = [words(5)] * 12
    met = names(open_lines(lines), range(8))
    again = open_lines(lines)
    assert [names(again, range(step, step + 1))[0] for step in (7, 0, 3)] == [met[7], met[0], met[3]]
    assert names(open_lines(lines, seed=1), range(8)) != met


def test_a_step_stays_within_the_budget(open_lines: Any) -> None:
    counts = (4, 4, 4, 4, 30, 9, 5)
    source = open_lines([words(count) for count in counts], tokens_per_step=10)
    lengths = sorted([counts[int(name) - 1] for name in step] for step in names(source, range(5)))
    # A sample longer than the budget comes alone.
    assert lengths == [[4, 4], [4, 4], [5], [9], [30]]


def test_steps_of_mixed_lengths_hold_as_many_tokens_as_fit(open_lines: Any) -> None:
    """Every epoch has steps of its own, and as many as it needs; it does not matter which is asked for first."""
    counts = [*[1, 2, 3, 5, 8] * 8, 30]
    lines = [words(count) for count in counts]
    source = open_lines(lines, tokens_per_step=15, max_samples_per_step=6, mix_lengths=True)
    met = names(source, range(60))
    lengths = [[counts[int(name) - 1] for name in step] for step in met]
    assert all(sum(step) <= 15 or step == [30] for step in lengths)
    assert sum(len(set(step)) > 1 for step in lengths) > 40
    flat = list(itertools.chain(*met))
    assert sorted(flat[:41], key=int) == [str(number) for number in range(1, 42)]
    assert sorted(flat[41:82], key=int) == sorted(flat[:41], key=int)
    assert flat[41:82] != flat[:41]
    again = open_lines(lines, tokens_per_step=15, max_samples_per_step=6, mix_lengths=True)
    assert [names(again, range(step, step + 1))[0] for step in (59, 3, 30)] == [met[59], met[3], met[30]]


def test_of_the_samples_only_places_and_lengths_stay_in_memory(open_lines: Any) -> None:
    lines = [words(1, "x" * 20_000)] * 200
    tracemalloc.start()
    source = open_lines(lines)
    lines.clear()
    before, _ = tracemalloc.get_traced_memory()
    del source
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before - after < 100_000


@pytest.fixture
def bad_lines(tmp_path: Path, picture: Any) -> list[Any]:
    """Lines 2, 4, 5, 6 and 7 are good."""
    (tmp_path / "text.png").write_text("no image")
    whole = picture(size=(64, 64))
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    (tmp_path / "good.png").write_bytes(whole)
    return [
        "{broken",
        photo("good.png"),
        photo("missing.png"),
        *[words(3)] * 4,
        photo("text.png"),
        photo("cut.png"),
        words(40),
        {"messages": "none"},
    ]


def test_bad_samples_are_skipped_reported_and_counted(
    open_lines: Any, bad_lines: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "samples.jsonl"
    source = open_lines(bad_lines, on_bad_sample="skip", window_tokens=20, tally=Tally(log))
    assert sorted(itertools.chain(*names(source, range(2)))) == ["2", "4", "5", "6", "7"]
    summary = (
        "data: 11 samples read = 5 used + 6 skipped (2 malformed, 1 missing image, 2 unreadable image, 1 too long)"
    )
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1] == summary
    assert len(printed) == 7
    *skipped, count = [json.loads(text) for text in log.read_text().splitlines()]
    places = [(entry["skipped"], entry["message"].split(": ")[0].rpartition(":")[2]) for entry in skipped]
    assert places == [
        ("malformed", "1"),
        ("missing image", "3"),
        ("unreadable image", "8"),
        ("unreadable image", "9"),
        ("too long", "10"),
        ("malformed", "11"),
    ]
    assert count["read"] == count["used"] + sum(count["skipped"].values()) == 11


def test_the_first_bad_sample_is_fatal_by_default(open_lines: Any, bad_lines: list[Any]) -> None:
    with pytest.raises(BadSampleError, match=r"data.jsonl:2: .*missing.png.*on_bad_sample=skip") as caught:
        open_lines(bad_lines[1:4])
    assert caught.value.reason == "missing image"


def test_the_recipe_may_set_the_longest_sample(open_lines: Any) -> None:
    with pytest.raises(BadSampleError, match=r"data.jsonl:2: 6 tokens, expected at most 5"):
        open_lines([words(5), words(6)], max_tokens_per_sample=5, window_tokens=100)


def test_an_image_whose_shape_the_processor_refuses_is_a_bad_sample(write_lines: Any) -> None:
    def refuse(_: Any) -> int:
        raise ValueError("absolute aspect ratio must be smaller than 200")

    jsonl = JsonlData(path=str(write_lines("data.jsonl", [words(1)])))
    with pytest.raises(BadSampleError, match=r"data.jsonl:1: absolute aspect ratio"):
        make_source(DataConfig(tokens_per_step=9, jsonl=jsonl), seed=0, count_tokens=refuse)


def test_a_sample_that_goes_bad_after_the_check_stops_the_run(open_lines: Any, tmp_path: Path, picture: Any) -> None:
    """Leaving it out would train other steps than an uninterrupted run."""
    (tmp_path / "1.png").write_bytes(picture())
    source = open_lines([photo("1.png")], on_bad_sample="skip")
    (tmp_path / "1.png").unlink()
    with pytest.raises(BadSampleError, match=r"data.jsonl:1: .*1.png: no such file"):
        source.samples(0)


@pytest.mark.parametrize("lines", [[], ["{broken"]])
def test_data_without_a_usable_sample_are_refused(open_lines: Any, lines: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"0 used .*expected at least one sample"):
        open_lines(lines, on_bad_sample="skip")


def test_many_skipped_samples_are_not_all_printed(
    open_lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "samples.jsonl"
    open_lines([words(1), *["{broken"] * 30], on_bad_sample="skip", tally=Tally(log))
    assert len(capsys.readouterr().err.splitlines()) == 22
    assert len(log.read_text().splitlines()) == 31
    open_lines([words(1)], tally=Tally(is_quiet=True))
    assert capsys.readouterr().err == ""
