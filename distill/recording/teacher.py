"""A teacher that is read from a recording: its weights are never loaded."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from distill.data.batch import Batch
from distill.recipe import LossConfig, Recipe
from distill.recording.binding import bind_data, bind_processor, glimpse_teacher, training_differences
from distill.recording.content import sample_contents
from distill.recording.manifest import Manifest
from distill.recording.needs import needed_layers
from distill.recording.reader import RecordingReader
from distill.recording.signals import join_layer, join_logits, join_top_logits
from distill.signals import AttentionShape, Signals


class RecordedTeacher:
    """Gives what the live teacher gave for the same samples, however they are batched now."""

    def __init__(self, recording: RecordingReader) -> None:
        self._recording = recording

    @property
    def shape(self) -> AttentionShape:
        """The sizes of the teacher's attention."""
        return self._recording.manifest.attention

    def signals(self, batch: Batch, layers: Collection[int]) -> Signals:
        """The recorded signals of the batch's samples, on its device.

        Raises:
            ValueError: a sample is not recorded, or was recorded with other tokens, positions or images; a damaged
                shard.
        """
        manifest = self._recording.manifest
        samples = self._recording.read(sample_contents(batch), batch.names)
        is_full = manifest.logits is not None and manifest.logits.top_k is None
        is_top = manifest.logits is not None and not is_full
        temperature = 1.0 if manifest.logits is None else manifest.logits.temperature
        return Signals(
            logits_NV=join_logits(samples, batch) if is_full else torch.empty(0, 0, device=batch.input_ids_BT.device),
            top_logits=join_top_logits(samples, batch, temperature) if is_top else None,
            layers={layer: join_layer(samples, batch, layer, manifest.layers[layer]) for layer in layers},
        )


def open_recorded_teacher(recipe: Recipe, processor: Any) -> RecordedTeacher:
    """Opens the recording that the recipe's teacher names, and makes sure that the recipe can be trained from it.

    Args:
        processor: the student's.

    Raises:
        ValueError: the recording is unfinished, damaged or of something else; the message names all that differs.
    """
    if recipe.teacher is None or recipe.teacher.recording is None:
        raise ValueError("teacher.recording: missing, expected a folder that `distill record` made")
    recording = RecordingReader(Path(recipe.teacher.recording))
    manifest = recording.manifest
    phrases = [
        *training_differences(
            manifest,
            teacher=glimpse_teacher(recipe.teacher),
            processor=bind_processor(processor),
            data=bind_data(recipe.data, recipe.train.seed),
        ),
        *_missing_signals(manifest, recipe.loss),
    ]
    if phrases:
        raise ValueError(
            f"teacher.recording: {recording.folder} was made of something else: {'; '.join(phrases)}; expected the "
            "settings it was made with, or a new recording: distill record RECIPE NEW_FOLDER"
        )
    coverage = recording.coverage
    if recipe.train.steps > coverage.steps and not coverage.is_every_sample:
        raise ValueError(
            f"teacher.recording: {recording.folder} holds {coverage.steps} steps, expected the recipe's "
            f"{recipe.train.steps}; record the rest with: distill record RECIPE {recording.folder}"
        )
    return RecordedTeacher(recording)


def _missing_signals(manifest: Manifest, loss: LossConfig) -> list[str]:
    phrases: list[str] = []
    for layer, need in needed_layers(loss, manifest.attention.num_layers).items():
        recorded = manifest.layers.get(layer)
        if recorded is None:
            phrases.append(f"layers: {layer} is not among {list(manifest.layers)}")
        elif not recorded.covers(need):
            phrases.append(
                f"rows: layer {layer} holds queries of {recorded.query_rows!r} rows and keys of "
                f"{recorded.key_rows!r} rows, the losses need {need.query_rows!r} and {need.key_rows!r}"
            )
    if loss.lambda_kl > 0:
        if manifest.logits is None:
            phrases.append("logits: none are recorded, loss.lambda_kl needs them")
        elif manifest.logits.top_k is not None and manifest.logits.temperature != loss.temperature:
            phrases.append(
                f"loss.temperature was {manifest.logits.temperature}, is {loss.temperature}; "
                "only a recording of all logits (--top-k all) serves every temperature"
            )
    return phrases
