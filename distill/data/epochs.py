"""Samples on disk as training steps: every epoch meets every usable sample once."""

import random
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

from tqdm import tqdm

from distill.data.bad_samples import BadSampleError, Tally
from distill.data.images import ImageReader
from distill.data.records import Place, Records, TakeImage
from distill.data.sample import CountTokens, Sample
from distill.recipe import DataConfig


class EpochSource:
    """Steps of about equally long samples, or of any, shuffled by seed and epoch.

    They are the same in every process and after a resume.

    Of each sample only its place and its length stay in memory: 40 bytes.
    """

    def __init__(
        self,
        config: DataConfig,
        records: Records,
        *,
        seed: int,
        count_tokens: CountTokens,
        window_tokens: int | None,
        tally: Tally,
    ) -> None:
        """Reads everything once, to check every sample and to learn its length.

        Args:
            window_tokens: longer samples are bad ones, unless `max_tokens_per_sample` says otherwise.
            tally: told of every sample.

        Raises:
            ValueError: a bad sample, unless they are to be skipped, or none that is left; files that cannot be read.
        """
        self._config = config
        self._records = records
        self._seed = seed
        self._images = ImageReader(config.images)
        self._places = array("Q")
        self._lengths = array("Q")
        limit = config.max_tokens_per_sample or window_tokens
        # On a terminal only.
        is_hidden = True if tally.is_quiet else None
        for place in tqdm(records.scan(), desc="checking the data", unit="sample", leave=False, disable=is_hidden):
            self._add(place, count_tokens, limit, tally)
        tally.finish()
        if not self._lengths:
            raise ValueError(f"data: {tally}; expected at least one sample to train on")
        self._first_steps = [0]
        self._plan = lru_cache(maxsize=1)(self._make_plan)

    def samples(self, step: int) -> list[Sample]:
        """The samples of this step; the same arguments always give the same samples.

        Raises:
            BadSampleError: a sample was changed since it was checked.
        """
        # Of any lengths, not every epoch has as many steps.
        while self._first_steps[-1] <= step:
            self._first_steps.append(self._first_steps[-1] + len(self._plan(len(self._first_steps) - 1)))
        epoch = bisect_right(self._first_steps, step) - 1
        chosen = self._plan(epoch)[step - self._first_steps[epoch]]
        return [self._read(self._place(sample), self._images.load) for sample in chosen]

    def _add(self, place: Place, count_tokens: CountTokens, limit: int | None, tally: Tally) -> None:
        try:
            length = self._measure(place, count_tokens, limit)
        except BadSampleError as error:
            if self._config.on_bad_sample == "fatal":
                hint = "; with data.on_bad_sample=skip such samples are left out and counted"
                raise BadSampleError(error.reason, f"{error}{hint}") from error
            tally.skip(error)
            return
        self._places.extend(place)
        self._lengths.append(length)
        tally.use()

    def _measure(self, place: Place, count_tokens: CountTokens, limit: int | None) -> int:
        sample = self._read(place, self._images.measure)
        try:
            length = count_tokens(sample)
        except BadSampleError:
            raise
        except ValueError as error:  # an image of a shape that the processor does not take
            raise BadSampleError("unreadable image", f"{sample.name}: {error}") from error
        if limit is not None and length > limit:
            raise BadSampleError("too long", f"{sample.name}: {length} tokens, expected at most {limit}")
        return length

    def _read(self, place: Place, take: TakeImage) -> Sample:
        name = self._records.name(place)
        try:
            return self._records.read(place, take)
        except BadSampleError as error:
            raise BadSampleError(error.reason, f"{name}: {error}") from error
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadSampleError("malformed", f"{name}: expected {self._records.form} ({error!r})") from error
        except ValueError as error:
            raise BadSampleError("malformed", f"{name}: {error}") from error

    def _place(self, sample: int) -> Place:
        start = sample * len(Place._fields)
        return Place._make(self._places[start : start + len(Place._fields)])

    def _make_plan(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"epoch/{self._seed}/{epoch}")
        samples = rng.sample(range(len(self._lengths)), len(self._lengths))
        if self._config.mix_lengths:
            return self._fill_steps(samples)
        # Stable: samples of equal length stay in random order, so that others meet in each epoch.
        samples.sort(key=self._lengths.__getitem__)
        steps = self._fill_steps(samples)
        rng.shuffle(steps)
        return steps

    def _fill_steps(self, samples: Sequence[int]) -> list[list[int]]:
        """Neighbours together; without mixed lengths they come shortest first and count as padded to the longest."""
        config = self._config
        steps: list[list[int]] = []
        step: list[int] = []
        num_tokens = 0
        for sample in samples:
            length = self._lengths[sample]
            with_it = num_tokens + length if config.mix_lengths else (len(step) + 1) * length
            if step and (len(step) == config.max_samples_per_step or with_it > config.tokens_per_step):
                steps.append(step)
                step, with_it = [], length
            step.append(sample)
            num_tokens = with_it
        return [*steps, step]
