"""Draws curves anew, so that everything computed from them gets an interval.

Dimension letters: B bootstrap replicates, K seeds (runs) of an entry, S sizes, N items of a size.

The bootstrap is hierarchical: the seeds of an entry are drawn first, then the items. An interval of a row of several
seeds thus covers both: another training, and other questions.

- Items are drawn with replacement, once for all models that answered the same ones, so that what makes an item hard
  for all of them does not blur a ratio of two. This needs the answers of each item; of a model of which only counts are
  known the items are drawn on their own, and ratios get wider intervals.
- Seeds are drawn by the bootknife (T. Hesterberg, Unbiasing the bootstrap, 2004): one is left out, and as many as there
  were are drawn from the rest. The plain bootstrap draws the spread between K seeds too narrow by (K-1)/K in variance,
  a third for three seeds.
"""

import numpy as np
from numpy.typing import NDArray

from distill.comparison.entry import Entry, Run
from distill.evaluate.curve import CurvePoint
from distill.evaluate.window import Floats

NUM_REPLICATES = 2000


class Bootstrap:
    """The draws of one comparison; the same entries in the same order always get the same ones."""

    def __init__(self, seed: int = 0, num_replicates: int = NUM_REPLICATES) -> None:
        self._seed, self._num_replicates = seed, num_replicates
        self._rng = np.random.default_rng(seed)
        self._drawn: dict[tuple[int, int, int], Floats] = {}

    def curves(self, entry: Entry) -> Floats:
        """Accuracies of the entry's curve, the mean over its seeds, [B, S]."""
        of_runs_KBS = np.stack([self._of_run(run) for run in entry.runs])
        chosen_KB = self._choose_seeds(len(entry.runs))
        return np.asarray(of_runs_KBS[chosen_KB, np.arange(self._num_replicates)].mean(axis=0))

    def _choose_seeds(self, num_seeds: int) -> NDArray[np.int64]:
        shape = (num_seeds, self._num_replicates)
        if num_seeds == 1:
            return np.zeros(shape, dtype=np.int64)
        left_out_B = self._rng.integers(num_seeds, size=self._num_replicates)
        return (left_out_B + self._rng.integers(1, num_seeds, size=shape)) % num_seeds

    def _of_run(self, run: Run) -> Floats:
        points = run.evaluation.points
        return np.stack([self._of_size(run, point) for point in points], axis=1)

    def _of_size(self, run: Run, point: CurvePoint) -> Floats:
        if run.correct is None:
            # Of N outcomes drawn with replacement the number of right ones is binomial.
            drawn_B = self._rng.binomial(point.items, point.accuracy, size=self._num_replicates)
            return np.asarray(drawn_B / point.items)
        shares_BN = self._item_shares(run.evaluation.seed, point)
        return np.asarray(shares_BN @ run.correct[point.images])

    def _item_shares(self, item_seed: int, point: CurvePoint) -> Floats:
        """How often each item is drawn, over the number of draws [B, N]: the same for all who answered these items."""
        key = (item_seed, point.images, point.items)
        if key not in self._drawn:
            rng = np.random.default_rng([self._seed, *key])
            uniform_N = np.full(point.items, 1 / point.items)
            self._drawn[key] = rng.multinomial(point.items, uniform_N, size=self._num_replicates) / point.items
        return self._drawn[key]
