"""Student and objective as one module: one forward pass goes through whatever Accelerate wraps around it."""

from collections.abc import Mapping

from torch import nn

from distill.data.batch import Batch
from distill.model import SignalModel
from distill.objective import Losses, Objective
from distill.signals import Signals


class Distiller(nn.Module):
    """Holds every trained parameter; a wrapper such as DistributedDataParallel sees them all in one forward pass."""

    def __init__(self, student: SignalModel, objective: Objective) -> None:
        super().__init__()
        self.student = student.model
        self.objective = objective
        self._signals = student.signals

    def forward(self, batch: Batch, teacher: Signals | None, progress: float, shares: Mapping[str, float]) -> Losses:
        """The losses of one part of a step; arguments as `Objective.forward`."""
        student = self._signals(batch, self.objective.student_layers)
        losses: Losses = self.objective(student, teacher, batch, progress, shares)
        return losses
