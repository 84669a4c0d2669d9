"""The training loop: signals of both models, one loss, one step; saved and resumed exactly."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from distill.data.batch import Batch
from distill.distiller import Distiller
from distill.interrupt import StopRequest
from distill.model import Teacher
from distill.objective import Losses
from distill.optimizer import make_optimizer, set_learning_rates
from distill.prefetch import prefetched
from distill.recipe import Recipe
from distill.recording.teacher import RecordedTeacher
from distill.runlog import RunLog
from distill.sharding import zero3
from distill.sharding.asked import Sharding
from distill.sharding.shares import whole
from distill.signals import Signals
from distill.state import load_state, save_state


@dataclass(frozen=True, kw_only=True)
class Part:
    """This process's share of a step, or a piece of it: what goes through the models at once."""

    batch: Batch
    is_real: bool = True
    """False where there are more parts than samples: the models run, since others wait for them, and nothing counts."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A part with what training does not change."""

    part: Part
    teacher: Signals | None
    rows: Mapping[str, int]
    """Rows of this part, by term."""
    counts: Mapping[str, float]
    """Numbers of this process's whole step: rows by term, samples, images and tokens."""


class Trainer:
    """Trains the student of a recipe; everything it needs is built before and handed in."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        accelerator: Accelerator,
        distiller: Distiller,
        sharding: Sharding | None,
        teacher: Teacher | RecordedTeacher | None,
        make_parts: Callable[[int], Sequence[Part]],
        state_path: Path,
        log_path: Path,
    ) -> None:
        """Starts at step 0, or at the step of the saved state if there is one.

        Args:
            sharding: by what the student is shared; with FSDP2 it already is.
            make_parts: this process's parts of a step, on its device, `train.micro_batches` of them; a pure function
                of the step.

        Raises:
            ValueError: the state was saved under another recipe.
        """
        self._recipe = recipe
        self._accelerator = accelerator
        self._teacher = teacher
        self._objective = distiller.objective
        self._make_parts = make_parts
        self._state_path = state_path
        self._modules = {"student": distiller.student, "objective": distiller.objective}
        self.sharding = sharding
        optimizer = make_optimizer(distiller.student, distiller.objective, recipe.train)
        self._trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._distiller: Any = distiller
        self._optimizer: Any = optimizer
        if sharding == "zero3":
            self._distiller, self._optimizer = zero3.prepare(distiller, optimizer, accelerator, recipe)
        elif sharding is None:
            self._distiller, self._optimizer = accelerator.prepare(distiller, optimizer)
        self.step = 0
        self.seconds = 0.0
        if self._state_path.exists():
            self._load()
        self._log = RunLog(log_path, first_step=self.step) if accelerator.is_main_process else None

    def run(self, stop: StopRequest) -> bool:
        """Trains until the last step, or until `stop` is set in any process; the state is saved in both cases.

        Returns:
            Whether the last step was reached.
        """
        config = self._recipe.train
        pieces = range(self.step * config.micro_batches, config.steps * config.micro_batches)
        is_main = self._accelerator.is_main_process
        with (
            tqdm(total=config.steps, initial=self.step, unit="step", desc="distill", disable=not is_main) as bar,
            closing(prefetched(self._input_maker(), pieces)) as inputs,
        ):
            while self.step < config.steps and not self._is_any(stop.is_set):
                started = time.perf_counter()
                entry = self._update(inputs)
                entry["seconds"] = round(time.perf_counter() - started, 4)
                if self._log is not None:
                    self._log.add(entry)
                self._accelerator.log(_tracked(entry), step=self.step)
                self.seconds += time.perf_counter() - started
                self.step += 1
                bar.set_postfix(_shown(entry), refresh=False)
                bar.update()
                if self.step % config.save_every == 0:
                    self._save()
        self._save()
        self._accelerator.end_training()
        return self.step == config.steps

    def last_losses(self) -> dict[str, float]:
        """Mean of each loss term over the last steps; in the main process."""
        return {} if self._log is None else self._log.last_losses()

    def log_entries(self) -> list[dict[str, Any]]:
        """All entries of log.jsonl; in the main process."""
        return [] if self._log is None else self._log.entries()

    def _input_maker(self) -> Callable[[int], Inputs]:
        """Makes the inputs of each piece of a step in their order: one ahead, beside the student's update."""
        parts: Sequence[Part] = ()
        rows: Sequence[Mapping[str, int]] = ()
        counts: Mapping[str, float] = {}

        def make(piece: int) -> Inputs:
            nonlocal parts, rows, counts
            step, index = divmod(piece, self._recipe.train.micro_batches)
            if index == 0:
                parts = self._make_parts(step)
                rows = [self._objective.row_counts(part.batch) for part in parts]
                counts = _counts(parts, rows)
            part, signals = parts[index], None
            if self._teacher is not None:
                signals = self._teacher.signals(part.batch, self._objective.teacher_layers)
            return Inputs(part=part, teacher=signals, rows=rows[index], counts=counts)

        return make

    def _update(self, inputs: Iterator[Inputs]) -> dict[str, Any]:
        """One step of the optimizer; returns its entry for the log."""
        set_learning_rates(self._optimizer, self.step, self._recipe.train)
        self._optimizer.zero_grad()
        totals: dict[str, float] = {}
        terms: dict[str, float] = {}
        for index in range(self._recipe.train.micro_batches):
            piece = next(inputs)
            if index == 0:
                totals = self._sum(piece.counts)
                if not self._recipe.train.freeze_vision:
                    self._expect_images(totals)
            with self._accelerator.accumulate(self._distiller):
                losses = self._backward(piece, totals)
            for name, value in losses.terms.items():
                terms[name] = terms.get(name, 0.0) + value
            terms["loss"] = terms.get("loss", 0.0) + losses.total.item()
        grad_norm = whole(self._accelerator.clip_grad_norm_(self._trained, self._recipe.train.max_grad_norm))
        self._optimizer.step()
        return self._log_entry(self._sum(terms), totals, float(grad_norm))

    def _backward(self, piece: Inputs, totals: Mapping[str, float]) -> Losses:
        """Adds this piece's gradient; over all pieces and processes they sum to that of the whole step."""
        part = piece.part
        shares = {name: count / totals[name] if part.is_real else 0.0 for name, count in piece.rows.items()}
        with self._accelerator.autocast():
            losses: Losses = self._distiller(part.batch, piece.teacher, self._progress, shares)
        if not losses.total.isfinite():
            raise ValueError(f"step {self.step}: the loss is {losses.total.item()}; terms: {losses.terms}")
        # The mean over processes and pieces, which is what Accelerate makes of it, times their number is the sum.
        num_pieces = self._accelerator.num_processes * self._recipe.train.micro_batches
        self._accelerator.backward(losses.total * num_pieces)
        return losses

    def _expect_images(self, totals: Mapping[str, float]) -> None:
        """Tells the shards of a tower in training, which sees no image in a part of text alone, what is to come."""
        if self.sharding == "fsdp2":
            self._distiller.set_reduce_scatter_unused_params(totals["images"] > 0, recurse=False)
        elif self.sharding == "zero3" and totals["parts_without_images"] > 0:
            raise ValueError(
                f"step {self.step}: {totals['parts_without_images']:.0f} parts without images, and "
                "train.freeze_vision: false, where DeepSpeed's processes would wait for each other; expected images in "
                "every part, a frozen tower, or FSDP2"
            )

    def _sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes."""
        if self._accelerator.num_processes == 1:
            return dict(values)
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=self._accelerator.device)
        return dict(zip(values, self._accelerator.reduce(mine, "sum").tolist(), strict=True))

    def _is_any(self, flag: bool) -> bool:
        return self._sum({"flag": float(flag)})["flag"] > 0

    @property
    def _progress(self) -> float:
        return self.step / max(1, self._recipe.train.steps - 1)

    def _log_entry(self, terms: dict[str, float], counts: Mapping[str, float], grad_norm: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "loss": terms.pop("loss"),
            "losses": terms,
            "gamma": self._objective.gamma(self._progress),
            "grad_norm": grad_norm,
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            **{name: int(counts[name]) for name in ("samples", "images", "tokens")},
        }

    def _save(self) -> None:
        save_state(
            self._state_path if self._accelerator.is_main_process else None,
            recipe=self._recipe,
            modules=self._modules,
            optimizer=self._optimizer,
            values={"step": self.step, "seconds": self.seconds},
        )

    def _load(self) -> None:
        values = load_state(
            self._state_path,
            recipe=self._recipe,
            modules=self._modules,
            optimizer=self._optimizer,
            parameters=self._trained,
        )
        self.step, self.seconds = values["step"], values["seconds"]


def _counts(parts: Sequence[Part], rows: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """What the real parts hold together; every process names the same things."""
    real = [(part.batch, of_part) for part, of_part in zip(parts, rows, strict=True) if part.is_real]
    return {
        "samples": sum(len(batch.names) for batch, _ in real),
        "images": sum(len(batch.images) for batch, _ in real),
        "tokens": sum(batch.num_tokens for batch, _ in real),
        "parts_without_images": sum(not part.batch.images for part in parts),
        **{name: sum(of_part[name] for _, of_part in real) for name in rows[0]},
    }


def _tracked(entry: Mapping[str, Any]) -> dict[str, float]:
    """One flat dictionary of numbers, as trackers take it."""
    losses = {f"losses/{name}": value for name, value in entry["losses"].items()}
    return losses | {name: value for name, value in entry.items() if name not in ("step", "losses")}


def _shown(entry: Mapping[str, Any]) -> dict[str, str]:
    """Beside the progress bar: the losses, and what went through the models in a second."""
    rates = {f"{name}/s": f"{entry[name] / max(entry['seconds'], 1e-9):.0f}" for name in ("images", "tokens")}
    return {name: f"{value:.3g}" for name, value in entry["losses"].items()} | rates
