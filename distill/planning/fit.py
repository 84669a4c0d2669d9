"""What of the attention matching fits into a given memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

from distill.losses.kinds import RowKind
from distill.planning.memory import MIB, Execution, map_bytes, plan_memory
from distill.planning.shapes import ModelShape
from distill.planning.step import StepShape, matched_rows
from distill.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One kind of rows under the memory."""

    rows: RowKind
    num_rows: int
    """Per sample; at most the recipe's `loss.matching.max_rows`."""
    chunk_mib: int | None
    """The largest `loss.matching.chunk_mib` that fits, or that is of use; None where even the smallest does not fit."""
    peak: int
    """With that, or with the smallest."""


def fit_matching(
    recipe: Recipe,
    student: ModelShape,
    teacher: ModelShape,
    step: StepShape,
    execution: Execution,
    limit_bytes: int,
) -> list[Fit]:
    """For each kind of rows, the largest chunk that keeps the peak at or below the limit."""

    max_rows = recipe.loss.matching.max_rows

    def peak(rows: RowKind, chunk_mib: int) -> int:
        return plan_memory(_with(recipe, rows, chunk_mib, max_rows), student, teacher, step, execution).peak

    def fits(rows: RowKind, chunk_mib: int) -> bool:
        return peak(rows, chunk_mib) <= limit_bytes

    found: list[Fit] = []
    for rows in get_args(RowKind):
        useful = _largest_useful(_with(recipe, rows, 1, max_rows), student, teacher, step)
        chunk_mib = _largest(useful, partial(fits, rows))
        largest_peak = peak(rows, max(chunk_mib, 1))
        num_rows = matched_rows(step, replace(recipe.loss.matching, rows=rows))
        found.append(Fit(rows=rows, num_rows=num_rows, chunk_mib=chunk_mib or None, peak=largest_peak))
    return found


def fit_rows(
    recipe: Recipe,
    student: ModelShape,
    teacher: ModelShape,
    step: StepShape,
    execution: Execution,
    limit_bytes: int,
) -> int:
    """How many of the rows that the recipe matches in each sample fit the limit, with the smallest chunks; 0 if none.

    As `loss.matching.max_rows` it draws so many of them.
    """

    def fits(max_rows: int) -> bool:
        sampled = _with(recipe, recipe.loss.matching.rows, 1, max_rows)
        return plan_memory(sampled, student, teacher, step, execution).peak <= limit_bytes

    return _largest(matched_rows(step, recipe.loss.matching), fits)


def _largest(highest: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `highest` that fits, by bisection: if one does, so do all below it; 0 if none."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _with(recipe: Recipe, rows: RowKind, chunk_mib: int, max_rows: int | None) -> Recipe:
    matching = replace(recipe.loss.matching, rows=rows, chunk_mib=chunk_mib, max_rows=max_rows)
    return replace(recipe, loss=replace(recipe.loss, matching=matching))


def _largest_useful(recipe: Recipe, student: ModelShape, teacher: ModelShape, step: StepShape) -> int:
    """MiB of the maps of all rows at once: more is of no use."""
    return math.ceil(map_bytes(recipe, student, teacher, step)[1] / MIB)
