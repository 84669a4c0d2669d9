"""The spectra of several checkpoints, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.aligned import align
from distill.attention_spectrum.fourier import Floats, Spectrum, periods

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One checkpoint's heads on haystacks of one size."""

    name: str
    num_images: int
    num_items: int
    profile_LHN: Floats
    """Mean over items."""
    needle_LH: Floats
    """Attention to the needle's image, wherever it is, mean over items."""
    distance_positions_N: Floats
    """The distances in M-RoPE positions."""
    spectrum: Spectrum

    @property
    def positions_per_image(self) -> float:
        """By which distance grows from image to image."""
        return float(np.diff(self.distance_positions_N).mean())

    @property
    def retrieval_head(self) -> tuple[int, int]:
        """Layer and number of the head that looks at the needle most (Wu et al., arXiv 2404.15574)."""
        layer, head = np.unravel_index(self.needle_LH.argmax(), self.needle_LH.shape)
        return int(layer), int(head)

    @property
    def variation(self) -> Floats:
        """Standard deviation of each head's profile over its mean, without what is noise [L, H].

        The shares say how fast attention varies with distance, this says how much.
        """
        variance_LH = (self.spectrum.energy_LHF - self.spectrum.noise_LHF).sum(axis=-1)
        return np.asarray(np.sqrt(np.maximum(variance_LH, 0)) / self.profile_LHN.mean(axis=-1))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A checkpoint's heads at one size, in a few numbers."""

    image_attention: float
    """Share of attention that images get, mean over heads."""
    variation: float
    """Standard deviation of the mean profile over its mean, mean over heads."""
    known_heads: int
    """With a profile that is not mostly noise."""
    num_heads: int
    low_share: float | None
    """Of the mean profile, mean over the known heads."""
    item_low_share: float
    """Of single items, mean over all heads."""
    flat_share: float
    """Of a spectrum with no preference."""


def summarise(measured: Measured, low_band: float) -> Summary:
    """Every head counts alike."""
    low_share_LH = measured.spectrum.low_share(low_band)
    is_known_LH = ~np.isnan(low_share_LH)
    return Summary(
        image_attention=float(measured.profile_LHN.sum(axis=-1).mean()),
        variation=float(measured.variation.mean()),
        known_heads=int(is_known_LH.sum()),
        num_heads=low_share_LH.size,
        low_share=float(low_share_LH[is_known_LH].mean()) if is_known_LH.any() else None,
        item_low_share=float(measured.spectrum.item_low_share(low_band).mean()),
        flat_share=measured.spectrum.flat_share(low_band),
    )


def format_table(found: Sequence[Measured], low_band: float) -> str:
    """The summaries, one line for each checkpoint and size."""
    rows = [
        (
            "images",
            "checkpoint",
            "items",
            "on images",
            "retrieval head",
            "varies by",
            "low band: profile",
            "heads",
            "single items",
            "flat",
        )
    ]
    for measured in found:
        summary = summarise(measured, low_band)
        rows.append(
            (
                str(measured.num_images),
                measured.name,
                str(measured.num_items),
                f"{100 * summary.image_attention:.1f} %",
                _retrieval(measured),
                f"{100 * summary.variation:.1f} %",
                "none" if summary.low_share is None else f"{100 * summary.low_share:.1f} %",
                f"{summary.known_heads} of {summary.num_heads}",
                f"{100 * summary.item_low_share:.1f} %",
                f"{100 * summary.flat_share:.1f} %",
            )
        )
    notes = [
        "retrieval head: layer/head that gives the needle's image most, and what it gives, mean over items",
        "varies by: standard deviation of the mean profile over its mean, without noise, mean over heads",
        f"low band: share of the energy at periods longer than {low_band:g} of the range, mean over heads",
        "profile: of the mean over items, of those heads whose profile is not mostly noise",
        "single items: mean over items; flat: what a head that looks at one image has there",
    ]
    return "\n".join([align(rows), *notes])


def _retrieval(measured: Measured) -> str:
    layer, head = measured.retrieval_head
    return f"{layer}/{head}: {100 * measured.needle_LH[layer, head]:.1f} %"


def to_json(found: Sequence[Measured], low_band: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Every head's profile and energies, ready for JSON, with `settings`: what was run on what."""
    return {
        "format": FORMAT,
        **settings,
        "low_band": low_band,
        "measured": [_measured_to_json(measured, low_band) for measured in found],
    }


def _measured_to_json(measured: Measured, low_band: float) -> dict[str, Any]:
    in_images = periods(measured.num_images)
    return {
        "checkpoint": measured.name,
        "images": measured.num_images,
        "items": measured.num_items,
        "summary": vars(summarise(measured, low_band)),
        "distance_positions": _rounded(measured.distance_positions_N),
        "period_images": _rounded(in_images),
        "period_positions": _rounded(measured.positions_per_image * in_images),
        "heads": [
            _head_to_json(measured, low_band, layer, head) for layer, head in np.ndindex(measured.profile_LHN.shape[:2])
        ],
    }


def _head_to_json(measured: Measured, low_band: float, layer: int, head: int) -> dict[str, Any]:
    spectrum, place = measured.spectrum, (layer, head)
    low_share = float(spectrum.low_share(low_band)[place])
    return {
        "layer": layer,
        "head": head,
        "image_attention": float(measured.profile_LHN[place].sum()),
        "needle_attention": float(measured.needle_LH[place]),
        "variation": float(measured.variation[place]),
        "low_share": None if np.isnan(low_share) else low_share,
        "item_low_share": float(spectrum.item_low_share(low_band)[place]),
        "profile": _rounded(measured.profile_LHN[place]),
        "energy": _rounded(spectrum.energy_LHF[place]),
        "noise_energy": _rounded(spectrum.noise_LHF[place]),
        "item_energy": _rounded(spectrum.item_energy_LHF[place]),
    }


def _rounded(values: Floats) -> list[float]:
    """Six digits, of a large model's millions of numbers."""
    return [float(f"{value:.6g}") for value in values]
