"""The benchmarks' statistics, and the file that they write."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "common.py"


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("benchmarks_common", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_ratio_is_of_throughput_and_within_its_round(common):
    assert common.paired_ratios([1.0, 3.0], [2.0, 2.0]) == [0.5, 1.5]


def test_rounds_that_do_not_pair_are_refused(common):
    with pytest.raises(ValueError, match="zip"):
        common.paired_ratios([1.0, 1.0], [1.0])


def test_pairing_cancels_what_slows_both(common):
    generator = np.random.default_rng(0)
    machine = generator.lognormal(0, 1, 200)
    ratios = common.paired_ratios(machine, machine * 1.25)

    assert ratios == pytest.approx([0.8] * 200)
    assert common.bootstrap_interval(ratios) == pytest.approx((0.8, 0.8))


def test_the_interval_covers_the_median_nineteen_times_in_twenty(common):
    generator = np.random.default_rng(0)
    intervals = [common.bootstrap_interval(generator.exponential(size=60)) for _ in range(200)]
    covered = np.mean([low <= np.log(2) <= high for low, high in intervals])

    assert 0.90 <= covered <= 0.99


def test_the_interval_is_reproducible(common):
    values = np.random.default_rng(0).normal(size=50)
    assert common.bootstrap_interval(values) == common.bootstrap_interval(values)


@pytest.mark.parametrize(("target", "met"), [(0.99, True), (1.0, True), (1.01, False), (None, None)])
def test_a_target_is_met_by_the_median_alone(common, target, met):
    row = common.ratio_row("prefill", [0.2, 1.0, 1.0, 1.0, 5.0], target)

    assert (row.value, row.target, row.met) == (1.0, target, met)


def test_the_file_holds_the_machine_and_every_row(common, tmp_path, capsys):
    rows = [
        common.ratio_row("decode: static", [0.98, 0.97, 0.99], 0.99),
        common.Row(name="memory", value=12.0, unit="bytes"),
    ]
    path = tmp_path / "new" / "result.json"

    common.report(common.describe_machine(["numpy"]), rows, path)

    written = json.loads(path.read_text())
    assert set(written) == {"machine", "rows"}
    assert written["machine"]["numpy"] == np.__version__
    for row, expected in zip(written["rows"], rows, strict=True):
        assert set(row) == {"name", "value", "unit", "target", "met", "low", "high"}
        assert (row["name"], row["value"], row["met"]) == (expected.name, expected.value, expected.met)
    table = capsys.readouterr().out
    assert "decode: static" in table
    assert " NO " in table
