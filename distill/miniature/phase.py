"""One resumable, seeded phase of training: a loop that saves itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill.interrupt import StopRequest

SAVE_EVERY = 100

Progress = dict[str, float]
StepLoss = Callable[[int, Progress], Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Updates of a phase and their learning rate: up over `warmup_steps`, flat, down to 0 over `decay_steps`."""

    steps: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        rising, falling = (step + 1) / self.warmup_steps, (self.steps - step) / self.decay_steps
        return self.learning_rate * min(1.0, rising, falling)


def run_phase(
    label: str, schedule: Schedule, model: nn.Module, step_loss: StepLoss, progress: Progress, file: Path
) -> None:
    """Trains `model`'s unfrozen parameters with AdamW; goes on from `file` if it is there.

    Args:
        label: shown by the progress bar.
        schedule: how many updates, and their learning rates.
        model: what is trained; its frozen parameters stay as they are.
        step_loss: computes the loss of step i; may read and write `progress`, which is shown and saved.
            Its random numbers must follow from i alone, so that a resumed run equals an unbroken one.
        progress: numbers that live from step to step, at their first values.
        file: written every `SAVE_EVERY` steps, at the end, and on Ctrl-C.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C, after the step under way was finished and saved.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=0.01)
    done = _load(file, model, optimizer, progress)
    with StopRequest() as stop, tqdm(total=schedule.steps, initial=done, desc=label, unit="step") as bar:
        while done < schedule.steps and not stop.is_set:
            loss = step_loss(done, progress)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(done)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            done += 1
            shown = {"loss": loss.item(), **progress}
            bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
            bar.update()
            if done % SAVE_EVERY == 0:
                _save(file, model, optimizer, progress, done)
        _save(file, model, optimizer, progress, done)
    if done < schedule.steps:
        raise KeyboardInterrupt


def _save(file: Path, model: nn.Module, optimizer: Any, progress: Progress, done: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": progress,
        "done": done,
    }
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def _load(file: Path, model: nn.Module, optimizer: Any, progress: Progress) -> int:
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress.update(state["progress"])
    return int(state["done"])
