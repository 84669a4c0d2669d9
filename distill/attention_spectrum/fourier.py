"""The Fourier spectrum of attention against distance, and the share of its low band.

Dimension letters: M items, R rounds of items, L layers, H heads, N images by distance, F frequencies.

The paper (arXiv 2512.21576) says that LAid keeps the low-frequency components of attention, without the procedure; this
one is ours. Of a profile p(d), the attention to the image at distance d of N, with mean μ:

    F_k = Σ_d (p(d) - μ)·exp(-2πi·k·d/N)            k = 1 ... N/2, a period of N/k images
    E_k = c_k·|F_k|² / N²                           c_k = 2, but 1 at k = N/2
    share of the low band = Σ_{k·w < 1} E_k / Σ_k E_k

The low band holds the periods longer than the share w of the range, a quarter if nothing else is said: k = 1, 2, 3. By
Parseval's theorem Σ_k E_k is the variance of p over d. There is no window: a window is for a piece cut out of a longer
signal, and this one is whole, from the last image to the first; it would hide just the ends, near and far, that are
asked about, and spread the mean into the lowest frequencies.

Two spectra, which answer two questions:

- of the *mean profile*: how does attention depend on distance, whatever the images show? Items differ, so their mean
  has an energy of noise, V_k = Σ_r |F_k,r - F_k|²·c_k / (N²·R·(R-1)), by its R rounds of items, in each of which
  every depth has the needle once. It is taken off, E_k - V_k, which leaves an estimate without bias. A head whose
  noise is more than half of its energy has no share: its profile is flat, as far as can be told.
- of *single items*, the mean over items of each one's energies: is attention spread smoothly, or on single images? A
  head that looks at one image has all frequencies alike, and the share of a flat spectrum; so has one that looks at a
  few unrelated ones. Smooth, global heads have more.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOW_BAND = 0.25
MOST_NOISE = 0.5


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Energies of every head at k = 1 ... N/2."""

    num_images: int
    energy_LHF: Floats
    """Of the mean profile, noise included."""
    noise_LHF: Floats
    """The part of it that is expected from the differences between items."""
    item_energy_LHF: Floats
    """Mean over single items."""

    @property
    def noise_share(self) -> Floats:
        """Of the mean profile's energy; may be above 1."""
        return np.asarray(self.noise_LHF.sum(axis=-1) / self.energy_LHF.sum(axis=-1))

    def low_share(self, low_band: float = LOW_BAND) -> Floats:
        """Of the mean profile; not a number where that is mostly noise."""
        is_known_LH = self.noise_share <= MOST_NOISE
        return np.where(is_known_LH, self._share(self.energy_LHF - self.noise_LHF, low_band), np.nan)

    def item_low_share(self, low_band: float = LOW_BAND) -> Floats:
        """Of single items."""
        return self._share(self.item_energy_LHF, low_band)

    def flat_share(self, low_band: float = LOW_BAND) -> float:
        """What a spectrum with no preference has: that of attention on one image."""
        return float(self._share(_weights(self.num_images), low_band))

    def _share(self, energy_XF: Floats, low_band: float) -> Floats:
        is_low_F = is_low(self.num_images, low_band)
        with np.errstate(invalid="ignore"):
            share_X = energy_XF[..., is_low_F].sum(axis=-1) / energy_XF.sum(axis=-1)
        return np.asarray(np.clip(share_X, 0, 1))


def make_spectrum(attention_MLHN: Floats, num_rounds: int) -> Spectrum:
    """The spectra of profiles whose items are in rounds of equal length, of which there are at least two."""
    num_items, num_images = attention_MLHN.shape[0], attention_MLHN.shape[-1]
    weights_F = _weights(num_images)
    # The mean is all there is at k = 0, so leaving that out removes it.
    waves_MLHF = np.fft.rfft(attention_MLHN, axis=-1)[..., 1:]
    waves_RLHF = waves_MLHF.reshape(num_rounds, num_items // num_rounds, *waves_MLHF.shape[1:]).mean(axis=1)
    mean_LHF = waves_RLHF.mean(axis=0)
    scatter_LHF = (np.abs(waves_RLHF - mean_LHF) ** 2).sum(axis=0) / (num_rounds * (num_rounds - 1))
    return Spectrum(
        num_images=num_images,
        energy_LHF=weights_F * np.abs(mean_LHF) ** 2,
        noise_LHF=weights_F * scatter_LHF,
        item_energy_LHF=weights_F * (np.abs(waves_MLHF) ** 2).mean(axis=0),
    )


def is_low(num_images: int, low_band: float) -> NDArray[np.bool_]:
    """Which frequencies are in the low band [F]."""
    return np.arange(1, num_images // 2 + 1) * low_band < 1


def periods(num_images: int) -> Floats:
    """Of each frequency, in images [F]."""
    return num_images / np.arange(1, num_images // 2 + 1)


def _weights(num_images: int) -> Floats:
    """c_k / N²: frequencies below the highest stand for their negative ones too."""
    weights_F = np.full(num_images // 2, 2.0)
    if num_images % 2 == 0:
        weights_F[-1] = 1
    return weights_F / num_images**2
