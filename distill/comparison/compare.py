"""From entries to the numbers of the table: accuracies, effective windows, and both against a base.

Dimension letters: B bootstrap replicates, S sizes, G the sizes of a gain.

The curve of an entry is the mean over its seeds, and its windows are those of that curve. The gains are the paper's
(arXiv 2512.21576): the mean over sizes of the ratios of two models' accuracies, less 1; over 1, 5, 10 and 20 images for
short contexts and over 50, 100 and 150 for long ones, as far as these were measured. A window factor is the ratio of
two windows at one threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.comparison.bootstrap import Bootstrap
from distill.comparison.entry import Entry, Run
from distill.evaluate.window import Floats, Threshold, interval, windows_at

GAIN_SIZES = {"short": (1, 5, 10, 20), "long": (50, 100, 150)}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float | None
    """None where it has no bound."""
    at_least: bool = False
    """All of it is a lower bound: a window longer than what was measured."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said of one entry. The last three are of the entry against the base, and None in the base's own row."""

    name: str
    sources: tuple[str, ...]
    accuracies: tuple[Estimate, ...]
    """By size."""
    compliances: tuple[float, ...]
    """Shares of legal answers, right or wrong, by size."""
    windows: tuple[Estimate, ...]
    """In images, by threshold."""
    factors: tuple[Estimate | None, ...] | None
    """By threshold; None where the base's window is 0 or has no end."""
    short_gain: Estimate | None
    """Also None where no size of it was measured, or the base has no right answer at one."""
    long_gain: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The whole table."""

    task: str
    sizes: tuple[int, ...]
    thresholds: tuple[Threshold, ...]
    base: str
    rows: tuple[Row, ...]
    is_paired: bool
    """Whether items were drawn together for all models."""

    def gain_sizes(self, gain: str) -> list[int]:
        """The sizes, among those measured, that the gain "short" or "long" is over."""
        return [size for size in self.sizes if size in GAIN_SIZES[gain]]


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """An entry's measured curve, as the only row of a batch, and its replicates."""

    measured_1S: Floats
    replicates_BS: Floats


def compare(entries: Sequence[Entry], base: str, bootstrap: Bootstrap) -> Comparison:
    """Compares entries of one task and of the same sizes; ValueError where none has the base's name."""
    names = [entry.name for entry in entries]
    if base not in names:
        raise ValueError(f"--base: {base!r}, expected one of {', '.join(names)}")
    runs = [run for entry in entries for run in entry.runs]
    first = runs[0].evaluation
    answered = {_answered(run) for run in runs}
    levels = {(each.kind, each.value): each for run in runs for each in run.evaluation.thresholds}
    curves = {entry.name: _make_curve(entry, bootstrap) for entry in entries}
    table = Comparison(
        task=first.task,
        sizes=tuple(point.images for point in first.points),
        thresholds=tuple(level for _, level in sorted(levels.items())),
        base=base,
        rows=(),
        is_paired=len(answered) == 1 and None not in answered,
    )
    rows = tuple(_make_row(table, entry, curves[entry.name], curves[base]) for entry in entries)
    return Comparison(**{**vars(table), "rows": rows})


def _answered(run: Run) -> tuple[int, ...] | None:
    """The seed and the numbers of the items, by size; None where it is not known which were right."""
    return None if run.correct is None else (run.evaluation.seed, *(each.items for each in run.evaluation.points))


def _make_curve(entry: Entry, bootstrap: Bootstrap) -> _Curve:
    accuracies_KS = [[point.accuracy for point in run.evaluation.points] for run in entry.runs]
    return _Curve(measured_1S=np.mean(accuracies_KS, axis=0)[None], replicates_BS=bootstrap.curves(entry))


def _make_row(table: Comparison, entry: Entry, curve: _Curve, base: _Curve) -> Row:
    is_base = entry.name == table.base
    by_run = [run.evaluation.points for run in entry.runs]
    return Row(
        name=entry.name,
        sources=tuple(str(run.source) for run in entry.runs),
        accuracies=tuple(_accuracy(entry, curve, column) for column in range(len(table.sizes))),
        compliances=tuple(
            float(np.mean([point.compliance for point in points])) for points in zip(*by_run, strict=True)
        ),
        windows=tuple(_window(table.sizes, curve, threshold) for threshold in table.thresholds),
        factors=None if is_base else tuple(_factor(table.sizes, curve, base, each) for each in table.thresholds),
        short_gain=None if is_base else _gain(table, curve, base, "short"),
        long_gain=None if is_base else _gain(table, curve, base, "long"),
    )


def _accuracy(entry: Entry, curve: _Curve, column: int) -> Estimate:
    """Of one seed with Wilson's interval, as in its own report; of several with the bootstrap's."""
    low, high = interval(curve.replicates_BS[:, column])
    if len(entry.runs) == 1:
        low, high = entry.runs[0].evaluation.points[column].interval
    return Estimate(value=float(curve.measured_1S[0, column]), low=low, high=high)


def _window(sizes: Sequence[int], curve: _Curve, threshold: Threshold) -> Estimate:
    images_1, is_censored_1 = windows_at(sizes, curve.measured_1S, threshold)
    low, high = interval(windows_at(sizes, curve.replicates_BS, threshold)[0])
    return Estimate(value=float(images_1[0]), low=low, high=high, at_least=bool(is_censored_1[0]))


def _factor(sizes: Sequence[int], curve: _Curve, base: _Curve, threshold: Threshold) -> Estimate | None:
    images_1, is_censored_1 = windows_at(sizes, curve.measured_1S, threshold)
    base_images_1, is_base_censored_1 = windows_at(sizes, base.measured_1S, threshold)
    if is_base_censored_1[0] or base_images_1[0] == 0:
        return None
    images_B, _ = windows_at(sizes, curve.replicates_BS, threshold)
    base_images_B, _ = windows_at(sizes, base.replicates_BS, threshold)
    return _ratio(images_1 / base_images_1, _divide(images_B, base_images_B), at_least=bool(is_censored_1[0]))


def _gain(table: Comparison, curve: _Curve, base: _Curve, name: str) -> Estimate | None:
    columns = [table.sizes.index(size) for size in table.gain_sizes(name)]
    if not columns or (base.measured_1S[:, columns] == 0).any():
        return None
    ratio_1 = (curve.measured_1S[:, columns] / base.measured_1S[:, columns]).mean(axis=1)
    ratio_BG = _divide(curve.replicates_BS[:, columns], base.replicates_BS[:, columns])
    return _ratio(ratio_1 - 1, ratio_BG.mean(axis=1) - 1)


def _ratio(value_1: Floats, replicates_B: Floats, *, at_least: bool = False) -> Estimate:
    low, high = interval(replicates_B)
    return Estimate(value=float(value_1[0]), low=low, high=None if np.isinf(high) else high, at_least=at_least)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise; infinite over 0, which bounds a ratio from below only."""
    out = np.full_like(numerator, np.inf)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
