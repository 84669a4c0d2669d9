"""The effective window of an accuracy curve, and the window factor of two.

Dimension letters: B bootstrap replicates, S sizes.

The paper (arXiv 2512.21576) speaks of the effective context window without defining it. Here it is the
largest number of images up to which accuracy stays at or above a threshold, with accuracy linear between the
measured sizes: the first fall below the threshold ends it, whatever comes after. Where accuracy is below from
the first size on, it is 0. Where it never falls below, the last size is a lower bound: a censored window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distill.evaluate.curve import CONFIDENCE, CurvePoint, check_curve

Floats = NDArray[np.float64]
Kind = Literal["absolute", "relative"]

RELATIVE_THRESHOLD = 0.85
"""Share of the model's own one-image accuracy, after RULER's fixed 85.6 %."""

NUM_REPLICATES = 2000

_ROUNDING = 1e-9
"""0.85 times a share and a count over a count may differ in the last bit and mean the same."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The accuracy that a window must hold."""

    value: float
    """An accuracy (absolute), or a share of the one-image accuracy (relative)."""

    kind: Kind

    def __post_init__(self) -> None:
        if not 0 < self.value <= 1:
            raise ValueError(f"threshold: {self.value} must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Window:
    """An effective window with its bootstrap interval. Where `censored`, the numbers are lower bounds."""

    threshold: float
    kind: Kind
    images: float
    images_low: float
    images_high: float
    """At most the largest measured size: an interval that reaches it is open above."""
    tokens: float
    tokens_low: float
    tokens_high: float
    censored: bool


@dataclass(frozen=True, kw_only=True)
class WindowFactor:
    """The ratio of a model's window to a base model's, at one threshold, with its bootstrap interval.

    All three numbers are None where the base's window is 0 or censored: there is no ratio then.
    """

    threshold: float
    kind: Kind
    factor: float | None
    low: float | None
    high: float | None
    """Also None, no bound, where too many replicates of the base have no window at all."""
    lower_bound: bool
    """The model's window is censored: the factor is at least this."""


def crossing(sizes_S: Floats, accuracy_BS: Floats, threshold_B: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The windows of B curves over the same growing sizes, in images [B], and which are censored [B]."""
    above_BS = accuracy_BS >= threshold_B[:, None] - _ROUNDING
    num_held_B = np.logical_and.accumulate(above_BS, axis=1).sum(axis=1)
    left_B = np.maximum(num_held_B - 1, 0)
    right_B = np.minimum(num_held_B, len(sizes_S) - 1)
    rows_B = np.arange(len(accuracy_BS))
    upper_B, lower_B = accuracy_BS[rows_B, left_B], accuracy_BS[rows_B, right_B]
    fall_B = np.where(upper_B > lower_B, upper_B - lower_B, 1.0)
    share_B = np.clip((upper_B - threshold_B) / fall_B, 0.0, 1.0)
    images_B = sizes_S[left_B] + share_B * (sizes_S[right_B] - sizes_S[left_B])
    return np.where(num_held_B > 0, images_B, 0.0), num_held_B == len(sizes_S)


def windows_at(sizes: Sequence[int], accuracy_BS: Floats, threshold: Threshold) -> tuple[Floats, NDArray[np.bool_]]:
    """The windows of B curves over the same growing sizes, in images [B], and which are censored [B].

    A relative threshold moves with each curve's accuracy at one image.

    Raises:
        ValueError: a relative threshold, and one image was not measured.
    """
    threshold_B = np.full(len(accuracy_BS), threshold.value)
    if threshold.kind == "relative":
        if sizes[0] != 1:
            raise ValueError(f"sizes: a relative threshold needs size 1, the smallest here is {sizes[0]}")
        # A model that answers nothing has no window, not one of any length.
        threshold_B = np.where(accuracy_BS[:, 0] > 0, threshold.value * accuracy_BS[:, 0], np.inf)
    return crossing(np.array(sizes, dtype=float), accuracy_BS, threshold_B)


def interval(values_B: Floats) -> tuple[float, float]:
    """The percentile interval, of order statistics: a mixture with infinity would not be a number."""
    tail = (1 - CONFIDENCE) / 2
    return float(np.quantile(values_B, tail, method="lower")), float(np.quantile(values_B, 1 - tail, method="higher"))


def effective_windows(
    points: Sequence[CurvePoint],
    thresholds: Sequence[Threshold],
    seed: int,
    num_replicates: int = NUM_REPLICATES,
) -> list[Window]:
    """The window at each threshold, with the percentile bootstrap's interval (items resampled within a size).

    A relative threshold needs a point at one image and moves with it from replicate to replicate.
    """
    replicates_BS = _resample(points, np.random.default_rng(seed), num_replicates)
    return [_window(points, threshold, replicates_BS) for threshold in thresholds]


def window_factors(
    points: Sequence[CurvePoint],
    base_points: Sequence[CurvePoint],
    thresholds: Sequence[Threshold],
    seed: int,
    num_replicates: int = NUM_REPLICATES,
) -> list[WindowFactor]:
    """The ratio of two models' windows at each threshold, both models' items resampled."""
    rng = np.random.default_rng(seed)
    replicates_BS = _resample(points, rng, num_replicates)
    base_replicates_BS = _resample(base_points, rng, num_replicates)
    factors = []
    for threshold in thresholds:
        images, censored = _images(points, _measured(points), threshold)
        base_images, base_censored = _images(base_points, _measured(base_points), threshold)
        factor = low = high = None
        if base_images[0] > 0 and not base_censored[0]:
            model_B, _ = _images(points, replicates_BS, threshold)
            base_B, _ = _images(base_points, base_replicates_BS, threshold)
            ratio_B = np.divide(model_B, base_B, out=np.full_like(model_B, np.inf), where=base_B > 0)
            factor = float(images[0] / base_images[0])
            low, high = interval(ratio_B)
        factors.append(
            WindowFactor(
                threshold=threshold.value,
                kind=threshold.kind,
                factor=factor,
                low=low,
                high=None if high is None or np.isinf(high) else high,
                lower_bound=bool(censored[0]),
            )
        )
    return factors


def _window(points: Sequence[CurvePoint], threshold: Threshold, replicates_BS: Floats) -> Window:
    images, censored = _images(points, _measured(points), threshold)
    images_B, _ = _images(points, replicates_BS, threshold)
    low, high = interval(images_B)
    tokens, tokens_low, tokens_high = _tokens(points, np.array([images[0], low, high]))
    return Window(
        threshold=threshold.value,
        kind=threshold.kind,
        images=float(images[0]),
        images_low=low,
        images_high=high,
        tokens=float(tokens),
        tokens_low=float(tokens_low),
        tokens_high=float(tokens_high),
        censored=bool(censored[0]),
    )


def _images(
    points: Sequence[CurvePoint], accuracy_BS: Floats, threshold: Threshold
) -> tuple[Floats, NDArray[np.bool_]]:
    return windows_at([point.images for point in points], accuracy_BS, threshold)


def _measured(points: Sequence[CurvePoint]) -> Floats:
    """The measured curve as the only row of a batch, [1, S]."""
    check_curve(points)
    return np.array([[point.accuracy for point in points]])


def _resample(points: Sequence[CurvePoint], rng: np.random.Generator, num_replicates: int) -> Floats:
    """Accuracies of curves whose items were drawn anew, with replacement, within each size [B, S].

    Of n outcomes drawn with replacement the number of right ones is binomial, so that number is drawn. Where every
    outcome is right, or none, there is nothing to vary: the plain bootstrap gives such a size no spread.
    """
    check_curve(points)
    items_S = np.array([point.items for point in points])
    share_S = np.array([point.accuracy for point in points])
    return np.asarray(rng.binomial(items_S, share_S, size=(num_replicates, len(points))) / items_S)


def _tokens(points: Sequence[CurvePoint], images_N: Floats) -> Floats:
    """Prompt tokens at these numbers of images [N], linear between the measured sizes; none for no images."""
    sizes = [point.images for point in points]
    tokens_N = np.interp(images_N, sizes, [point.prompt_tokens for point in points])
    return np.where(images_N > 0, tokens_N, 0.0)
