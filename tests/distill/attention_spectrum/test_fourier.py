"""Profiles of known frequencies give known energies."""

import numpy as np
import pytest

from distill.attention_spectrum.fourier import Spectrum, is_low, make_spectrum, periods


def wave(num_images: int, **amplitudes: float) -> np.ndarray:
    """A mean of 1, and cosines: `k2=0.5` has two periods in the range and the amplitude 0.5."""
    turns = 2 * np.pi * np.arange(num_images) / num_images
    return 1 + sum(size * np.cos(int(name[1:]) * turns + 0.3) for name, size in amplitudes.items())


def spectrum_of(profile: np.ndarray) -> Spectrum:
    """Of one head that gives the same profile in each of six items."""
    return make_spectrum(np.tile(profile, (6, 1, 1, 1)), 2)


@pytest.mark.parametrize("num_images", [20, 21, 100])
@pytest.mark.parametrize(
    ("amplitudes", "share"),
    [({"k2": 0.5}, 1.0), ({"k3": 0.1}, 1.0), ({"k4": 0.5}, 0.0), ({"k2": 0.3, "k7": 0.4}, 0.09 / 0.25)],
    ids=["k = 2", "k = 3", "k = 4", "both"],
)
def test_the_low_band_has_the_share_of_its_amplitudes(
    num_images: int, amplitudes: dict[str, float], share: float
) -> None:
    spectrum = spectrum_of(wave(num_images, **amplitudes))
    assert spectrum.low_share()[0, 0] == pytest.approx(share, abs=1e-12)
    assert spectrum.item_low_share()[0, 0] == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("num_images", [20, 21])
def test_energies_are_the_variance_over_distance(num_images: int) -> None:
    profile = np.random.default_rng(0).random(num_images)
    spectrum = spectrum_of(profile)
    assert spectrum.energy_LHF.sum() == pytest.approx(profile.var())
    assert spectrum.item_energy_LHF.sum() == pytest.approx(profile.var())
    assert spectrum.noise_LHF.sum() == pytest.approx(0, abs=1e-15)


def test_a_wave_s_energy_is_half_its_squared_amplitude() -> None:
    energies = spectrum_of(wave(20, k5=0.4)).energy_LHF[0, 0]
    assert energies.tolist() == pytest.approx([0.0] * 4 + [0.08] + [0.0] * 5, abs=1e-15)
    # The highest frequency has no negative one beside it: 1, -1, 1, -1 has the variance 1.
    assert spectrum_of(np.tile([1.0, -1.0], 10)).energy_LHF[0, 0, -1] == pytest.approx(1)


def test_moving_a_profile_changes_no_energy() -> None:
    profile = np.random.default_rng(1).random(32)
    first, moved = (spectrum_of(each) for each in (profile, np.roll(profile, 5)))
    np.testing.assert_allclose(first.energy_LHF, moved.energy_LHF)


def test_attention_on_one_image_has_the_flat_share() -> None:
    """k = 1, 2, 3 of ten, of which the last counts half."""
    spectrum = spectrum_of(np.eye(20)[7])
    assert spectrum.flat_share() == pytest.approx(3 / 9.5)
    assert spectrum.low_share()[0, 0] == pytest.approx(3 / 9.5)


def test_the_low_band_holds_periods_longer_than_its_share() -> None:
    assert is_low(20, 0.25).tolist() == [True] * 3 + [False] * 7
    assert is_low(20, 0.3).tolist() == [True] * 3 + [False] * 7
    assert is_low(20, 0.5).tolist() == [True] + [False] * 9
    assert periods(20).tolist() == pytest.approx([20 / k for k in range(1, 11)])


def test_noise_is_taken_off() -> None:
    """A wave of k = 2 under item noise of more than its energy."""
    rng = np.random.default_rng(2)
    num_rounds, num_images = 10, 20
    signal = wave(num_images, k2=0.2)
    items = signal + rng.normal(0, 0.3, size=(num_rounds * num_images, 1, 1, num_images))
    spectrum = make_spectrum(items, num_rounds)
    assert spectrum.noise_LHF.sum() == pytest.approx(0.3**2 / (num_rounds * num_images), rel=0.3)
    assert spectrum.energy_LHF.sum() - spectrum.noise_LHF.sum() == pytest.approx(0.02, rel=0.15)
    assert spectrum.low_share()[0, 0] > 0.95
    # What varies from item to item is white, and more than the wave.
    assert spectrum.item_low_share()[0, 0] < 0.5


def test_a_flat_profile_under_noise_has_no_share() -> None:
    noise = np.random.default_rng(3).normal(1, 0.3, size=(80, 2, 3, 20))
    shares = make_spectrum(noise, 8).low_share()
    assert shares.shape == (2, 3)
    assert np.isnan(shares).all()


def test_heads_that_find_needles_at_every_depth_alike_have_a_flat_mean() -> None:
    """Attention on the needle alone: nothing but noise in the mean, and flat spectra in the items."""
    spectrum = make_spectrum(np.tile(np.eye(20), (3, 1))[:, None, None], 3)
    assert spectrum.energy_LHF.sum() == pytest.approx(0, abs=1e-30)
    assert spectrum.item_low_share()[0, 0] == pytest.approx(spectrum.flat_share())
