"""Runs a recipe's teacher once over the data that the training will meet, and records its signals."""

import itertools
import time
from contextlib import closing
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoConfig

from distill.data.bad_samples import Tally
from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.families import find_family
from distill.inputs import check_teacher
from distill.interrupt import StopRequest
from distill.loading import (
    choose_device,
    choose_teacher_device,
    load_model,
    load_processor,
    load_window,
    make_source,
    resolve_path,
)
from distill.model import Teacher, attention_shape
from distill.objective import Objective
from distill.prefetch import prefetched
from distill.recipe import Recipe, TeacherConfig
from distill.recording.binding import bind_data, bind_processor, bind_teacher, bind_versions
from distill.recording.content import sample_contents
from distill.recording.estimate import Estimate, estimate_size
from distill.recording.manifest import LogitRecord, Manifest, SignalDtype
from distill.recording.needs import needed_layers
from distill.recording.signals import cut
from distill.recording.writer import RecordingWriter


class Recorder:
    """The teacher, its data and the manifest of what is to be recorded.

    Steps are recorded as the training will meet them: of data that never repeat, each step of the recipe; of samples
    on disk, each sample once, whatever the number of epochs.
    """

    def __init__(self, recipe: Recipe, *, top_k: int | None, dtype: SignalDtype) -> None:
        """Loads the teacher and compares both models' inputs on the first step.

        Args:
            top_k: how many of an answer row's tokens are kept, the others as one; None keeps the logits of all.
            dtype: of recorded queries and keys.

        Raises:
            ValueError: the recipe has no teacher, or models, losses and data do not fit each other.
        """
        if recipe.teacher is None:
            raise ValueError("teacher: missing, expected a model: there is nothing to record")
        self._recipe = recipe
        self._device = choose_teacher_device(recipe.teacher, choose_device(recipe.train))
        model = load_model(recipe.teacher, self._device)
        cache_bytes = recipe.train.feature_cache_mib * 2**20
        self._teacher = Teacher(model, feature_cache_bytes=cache_bytes, attention=recipe.train.attention)
        processor = load_processor(recipe.student)
        # The student's processor, as in training: there the teacher is given the student's tensors.
        rope_index = find_family(model).rope_index(model)
        self._collate = Collator(processor, rope_index, is_packed=recipe.train.packing, stretch=recipe.data.stretch)
        self._tally = Tally()
        self._source = make_source(
            recipe.data,
            seed=recipe.train.seed,
            count_tokens=self._collate.count_tokens,
            window_tokens=load_window(recipe.student),
            tally=self._tally,
        )
        check_teacher(
            recipe.teacher,
            model,
            self._source.samples(0),
            collate=self._collate,
            student_tokenizer=processor.tokenizer,
            stretch=recipe.data.stretch,
        )
        self._check_objective(processor)
        self.manifest = self._make_manifest(recipe.teacher, processor, top_k, dtype)

    def estimate(self) -> Estimate:
        """Size of the whole recording."""
        return estimate_size(
            self._make_batch, self.manifest, steps=self._recipe.train.steps, num_source_samples=self._num_samples
        )

    def run(self, writer: RecordingWriter, estimate: Estimate, stop: StopRequest) -> bool:
        """Records what is not recorded yet, until all is or `stop` is set.

        Returns:
            Whether all is recorded.
        """
        todo = [step for step in range(self._recipe.train.steps) if step not in writer.steps]
        with (
            tqdm(total=estimate.total_bytes, initial=writer.num_bytes, unit="B", unit_scale=True, desc="record") as bar,
            closing(prefetched(lambda index: self._make_batch(todo[index]), range(len(todo)))) as batches,
        ):
            for step in todo:
                if self._is_every_sample(writer):
                    break
                if stop.is_set:
                    return False
                self._record(writer, step, next(batches), bar)
            # The estimate was one.
            bar.total = bar.n
        steps = next(step for step in itertools.count() if step not in writer.steps)
        writer.finish(steps=steps, is_every_sample=self._is_every_sample(writer))
        return True

    @property
    def _num_samples(self) -> int | None:
        """Different samples of the data; None if they never repeat."""
        return self._tally.used or None

    def _is_every_sample(self, writer: RecordingWriter) -> bool:
        return self._num_samples is not None and writer.num_samples >= self._num_samples

    def _make_batch(self, step: int) -> Batch:
        return self._collate(self._source.samples(step))

    def _record(self, writer: RecordingWriter, step: int, batch: Batch, bar: "tqdm[Any]") -> None:
        started = time.perf_counter()
        before = writer.num_bytes
        contents = sample_contents(batch)
        new = writer.new_samples(contents)
        tensors: dict[str, Any] = {}
        if new:
            # The whole batch, not only what is new of it: so the signals depend on the step alone.
            moved = batch.to(self._device)
            signals = self._teacher.signals(moved, self.manifest.layers)
            for place, values in enumerate(cut(signals, moved, new, self.manifest)):
                tensors.update({f"{place}.{name}": value for name, value in values.items()})
        writer.add(
            step,
            num_samples=len(contents),
            names=[batch.names[index] for index in new],
            contents=[contents[index] for index in new],
            tensors=tensors,
        )
        seconds = time.perf_counter() - started
        shown = {"step": str(step)}
        shown |= {"images/s": f"{len(batch.images) / seconds:.0f}", "tokens/s": f"{batch.num_tokens / seconds:.0f}"}
        rests = [value.exp() for name, value in tensors.items() if name.endswith(".log_rest")]
        if rests:
            shown["top"] = f"{1 - torch.cat(rests).mean().item():.1%}"
        bar.set_postfix(shown, refresh=False)
        bar.update(writer.num_bytes - before)

    def _check_objective(self, processor: Any) -> None:
        """Refuses now what the training would refuse after the recording."""
        student = AutoConfig.from_pretrained(resolve_path(self._recipe.student.path))
        num_tokens, num_logits = len(processor.tokenizer), self._teacher.model.config.get_text_config().vocab_size
        if self._recipe.loss.lambda_kl > 0 and num_logits < num_tokens:
            raise ValueError(f"teacher: {num_logits} logits, expected at least the tokenizer's {num_tokens}")
        Objective(
            self._recipe.loss,
            student=attention_shape(student),
            teacher=self._teacher.shape,
            vocabulary_size=num_tokens,
        )

    def _make_manifest(self, teacher: TeacherConfig, processor: Any, top_k: int | None, dtype: SignalDtype) -> Manifest:
        recipe, num_tokens = self._recipe, len(processor.tokenizer)
        logits = None
        if recipe.loss.lambda_kl > 0:
            logits = LogitRecord(
                top_k=None if top_k is None or top_k >= num_tokens else top_k,
                temperature=recipe.loss.temperature,
                vocabulary_size=num_tokens,
            )
        return Manifest(
            teacher=bind_teacher(teacher),
            processor=bind_processor(processor),
            data=bind_data(recipe.data, recipe.train.seed),
            layers=dict(needed_layers(recipe.loss, self._teacher.shape.num_layers)),
            logits=logits,
            dtype=dtype,
            attention=self._teacher.shape,
            versions=bind_versions(),
            coverage=None,
        )
