"""The training loop: signals of both models, one loss, one step; saved and resumed exactly."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from distill.data.batch import Batch
from distill.interrupt import StopRequest
from distill.model import SignalModel, Teacher
from distill.objective import Losses, Objective
from distill.optimizer import make_optimizer, set_learning_rates
from distill.prefetch import prefetched
from distill.recipe import Recipe
from distill.runlog import RunLog
from distill.signals import Signals
from distill.state import load_state, save_state


class Trainer:
    """Trains the student of a recipe; everything it needs is built before and handed in."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        student: SignalModel,
        teacher: Teacher | None,
        objective: Objective,
        make_batch: Callable[[int], Batch],
        state_path: Path,
        log_path: Path,
    ) -> None:
        """Starts at step 0, or at the step of the saved state if there is one.

        Args:
            make_batch: the batch of a step, on the models' device; a pure function of the step.

        Raises:
            ValueError: the state was saved under another recipe.
        """
        self._recipe = recipe
        self._student = student
        self._teacher = teacher
        self._objective = objective
        self._make_batch = make_batch
        self._state_path = state_path
        self._modules = {"student": student.model, "objective": objective}
        self._optimizer = make_optimizer(student.model, objective, recipe.train)
        self.step = 0
        self.seconds = 0.0
        if self._state_path.exists():
            self._load()
        self.log = RunLog(log_path, first_step=self.step)

    def run(self, stop: StopRequest) -> bool:
        """Trains until the last step, or until `stop` is set; the state is saved in both cases.

        Returns:
            Whether the last step was reached.
        """
        config = self._recipe.train
        steps = range(self.step, config.steps)
        with (
            tqdm(total=config.steps, initial=self.step, unit="step", desc="distill") as bar,
            closing(prefetched(self._inputs, steps)) as inputs,
        ):
            while self.step < config.steps and not stop.is_set:
                started = time.perf_counter()
                batch, teacher = next(inputs)
                losses, grad_norm = self._update(batch, teacher)
                seconds = time.perf_counter() - started
                self.log.add(self._log_entry(batch, losses, grad_norm, seconds))
                self.seconds += seconds
                self.step += 1
                bar.set_postfix({name: f"{value:.3g}" for name, value in losses.terms.items()}, refresh=False)
                bar.update()
                if self.step % config.save_every == 0:
                    self._save()
        self._save()
        return self.step == config.steps

    def _inputs(self, step: int) -> tuple[Batch, Signals | None]:
        """What a step needs that training does not change: made one step ahead, beside the student's update."""
        batch = self._make_batch(step)
        if self._teacher is None:
            return batch, None
        return batch, self._teacher.signals(batch, self._objective.teacher_layers)

    def _update(self, batch: Batch, teacher: Signals | None) -> tuple[Losses, float]:
        set_learning_rates(self._optimizer, self.step, self._recipe.train)
        student = self._student.signals(batch, self._objective.student_layers)
        losses: Losses = self._objective(student, teacher, batch, self._progress)
        if not losses.total.isfinite():
            raise ValueError(f"step {self.step}: the loss is {losses.total.item()}; terms: {losses.terms}")
        self._optimizer.zero_grad()
        torch.autograd.backward(losses.total)
        trained = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        grad_norm = clip_grad_norm_(trained, self._recipe.train.max_grad_norm)
        self._optimizer.step()
        return losses, grad_norm.item()

    @property
    def _progress(self) -> float:
        return self.step / max(1, self._recipe.train.steps - 1)

    def _log_entry(self, batch: Batch, losses: Losses, grad_norm: float, seconds: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "loss": losses.total.item(),
            "losses": losses.terms,
            "gamma": self._objective.gamma(self._progress),
            "grad_norm": grad_norm,
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "samples": len(batch.names),
            "images": len(batch.images),
            "tokens": batch.num_tokens,
            "seconds": round(seconds, 4),
        }

    def _save(self) -> None:
        values = {"step": self.step, "seconds": self.seconds, "optimizer": self._optimizer.state_dict()}
        save_state(self._state_path, recipe=self._recipe, modules=self._modules, values=values)

    def _load(self) -> None:
        values = load_state(self._state_path, recipe=self._recipe, modules=self._modules)
        self._optimizer.load_state_dict(values["optimizer"])
        self.step, self.seconds = values["step"], values["seconds"]
