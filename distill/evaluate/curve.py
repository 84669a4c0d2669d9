"""Accuracy against the number of images: one point a size, each with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What was measured at one number of images."""

    images: int
    """Images in each prompt."""

    prompt_tokens: float
    """Mean prompt tokens, images included."""

    items: int
    """Questions asked."""

    correct: int
    """Questions answered right."""

    compliant: int
    """Questions answered with a legal answer, right or wrong."""

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.items

    @property
    def compliance(self) -> float:
        """The share of legal answers."""
        return self.compliant / self.items

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval of the accuracy."""
        return wilson_interval(self.correct, self.items)


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share: never outside [0, 1], and not empty at shares of 0 and 1.

    Source: E. B. Wilson, Probable inference, JASA 22 (1927).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def check_curve(points: Sequence[CurvePoint]) -> None:
    """Raises ValueError unless the points have growing sizes and at least one item each."""
    sizes = [point.images for point in points]
    if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 1:
        raise ValueError(f"sizes: {sizes} must be one or more growing numbers of images")
    for point in points:
        if not 0 <= point.correct <= point.items or point.items < 1:
            raise ValueError(f"size {point.images}: {point.correct} right answers out of {point.items} items")
