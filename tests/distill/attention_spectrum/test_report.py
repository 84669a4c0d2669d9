"""The summary of heads whose profiles are known."""

import numpy as np
import pytest

from distill.attention_spectrum.fourier import make_spectrum
from distill.attention_spectrum.report import Measured, format_table, summarise, to_json

NUM_IMAGES = 20


def measured(name: str, *profiles: np.ndarray) -> Measured:
    """One layer, a head for each profile, the same in each of four items."""
    attention_MLHN = np.tile(np.stack(profiles), (4, 1, 1, 1))
    return Measured(
        name=name,
        num_images=NUM_IMAGES,
        num_items=4,
        profile_LHN=attention_MLHN.mean(axis=0),
        needle_LH=attention_MLHN[:, :, :, 0].mean(axis=0),
        distance_positions_N=20.0 + 4 * np.arange(NUM_IMAGES),
        spectrum=make_spectrum(attention_MLHN, 2),
    )


def wave(k: int, amplitude: float) -> np.ndarray:
    return 0.03 * (1 + amplitude * np.cos(2 * np.pi * k * np.arange(NUM_IMAGES) / NUM_IMAGES))


TWO = measured("two", wave(2, 0.5), wave(6, 0.1))


def test_every_head_counts_alike() -> None:
    summary = summarise(TWO, 0.25)
    assert (summary.known_heads, summary.num_heads) == (2, 2)
    assert summary.low_share == pytest.approx(0.5)
    assert summary.item_low_share == pytest.approx(0.5)
    assert summary.image_attention == pytest.approx(0.6)
    # A cosine's standard deviation is its amplitude over the root of 2.
    assert summary.variation == pytest.approx((0.5 + 0.1) / 2 / np.sqrt(2))
    # With k = 6 in the band too.
    assert summarise(TWO, 0.15).low_share == pytest.approx(1)


def test_heads_that_are_mostly_noise_are_left_out() -> None:
    noise_MN = np.random.default_rng(0).normal(0.03, 0.01, size=(40, NUM_IMAGES))
    attention_MLHN = np.stack([noise_MN, np.tile(wave(2, 0.5), (40, 1))], axis=1)[:, None]
    mixed = Measured(
        name="mixed",
        num_images=NUM_IMAGES,
        num_items=40,
        profile_LHN=attention_MLHN.mean(axis=0),
        needle_LH=attention_MLHN[:, :, :, 0].mean(axis=0),
        distance_positions_N=np.arange(float(NUM_IMAGES)),
        spectrum=make_spectrum(attention_MLHN, 10),
    )
    summary = summarise(mixed, 0.25)
    assert (summary.known_heads, summary.low_share) == (1, pytest.approx(1))
    heads = to_json([mixed], 0.25, {})["measured"][0]["heads"]
    assert heads[0]["low_share"] is None
    assert heads[1]["low_share"] == pytest.approx(1)
    assert heads[0]["variation"] < 0.05 < heads[1]["variation"]


def test_the_table_names_what_it_shows() -> None:
    header, _, row, *notes = format_table([TWO], 0.25).splitlines()
    assert header.split("  ")[-1].strip() == "flat"
    assert " ".join(row.split()) == "20 two 4 60.0 % 0/0: 4.5 % 21.2 % 50.0 % 2 of 2 50.0 % 31.6 %"
    assert any("longer than 0.25 of the range" in note for note in notes)


def test_the_retrieval_head_is_the_one_that_looks_at_the_needle_most() -> None:
    """The needle is at distance 0 here, where a cosine has its largest value."""
    assert TWO.retrieval_head == (0, 0)
    heads = to_json([TWO], 0.25, {})["measured"][0]["heads"]
    assert [head["needle_attention"] for head in heads] == pytest.approx([0.03 * 1.5, 0.03 * 1.1])
    assert "0/0: 4.5 %" in format_table([TWO], 0.25)
