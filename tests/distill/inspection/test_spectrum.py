"""Wavelengths and axes against what is written down by hand."""

import math
from pathlib import Path
from typing import Any

import pytest

import rope_gain
from distill.gains import read_gains
from distill.inspection.spectrum import Band, RotaryPair, make_bands, rotary_pairs
from distill.inspection.table import short_number
from rope_gain import RopeGainConfig
from rope_gain.families import FAMILIES, Family, find_family
from tests.rope_gain.models import HEAD_SIZE, ROPE_THETA, TINY, build_tiny

NUM_PAIRS = HEAD_SIZE // 2


def read(folder: Path, model: Any) -> Any:
    rope_gain.attach(model, RopeGainConfig())
    rope_gain.save_pretrained(model, folder)
    return read_gains(folder)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_each_pair_has_its_wavelength_and_axis(tmp_path: Path, family: Family) -> None:
    pairs = rotary_pairs(read(tmp_path, build_tiny(family)[0]))

    expected = [2 * math.pi * ROPE_THETA ** (pair / NUM_PAIRS) for pair in range(NUM_PAIRS)]
    assert [pair.wavelength for pair in pairs] == pytest.approx(expected, rel=1e-6)
    axes = TINY[family.architecture].axes
    names = ("time", "height", "width") if any(axes) else ("position",)
    assert [pair.axis for pair in pairs] == [names[axis] for axis in axes]


def test_scaled_positions_have_longer_wavelengths(tmp_path: Path) -> None:
    family = find_family("Qwen3ForCausalLM")
    plain = rotary_pairs(read(tmp_path / "plain", build_tiny(family)[0]))
    model, _ = build_tiny(family)
    model.config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": ROPE_THETA}

    scaled = rotary_pairs(read(tmp_path / "scaled", model))

    assert [pair.wavelength for pair in scaled] == pytest.approx([4 * pair.wavelength for pair in plain])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_the_norms_of_a_checkpoint_are_seen(tmp_path: Path, family: Family) -> None:
    assert read(tmp_path, build_tiny(family)[0]).has_norm == ("Qwen3" in family.architecture)


def test_bands_are_decades_of_one_axis() -> None:
    pairs = [RotaryPair("time", 6.3), RotaryPair("height", 10.0), RotaryPair("time", 99.9), RotaryPair("time", 50.0)]
    assert make_bands(pairs) == [Band("time", 1, (0,)), Band("time", 10, (2, 3)), Band("height", 10, (1,))]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, "1"),
        (6.2832, "6.3"),
        (9.96, "10"),
        (353.3, "353"),
        (999.6, "1k"),
        (1117, "1.1k"),
        (35333, "35k"),
        (5e6, "5M"),
    ],
)
def test_short_numbers(value: float, label: str) -> None:
    assert short_number(value) == label
