"""Run by test_matching_triton.py with TRITON_INTERPRET=1, which Triton reads when it is imported: computes the sums of
every case by the kernels, and writes them to a file."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill.losses.kinds import DistanceKind
from distill.losses.matching import Task, attention_matching
from distill.losses.rows import rows_where
from distill.signals import QueryKey
from tests.distill.losses.test_matching import make_case, tilted

CHUNK_PAIRS = 32 * 32
UPSTREAM = -3.0


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """One case: what `make_case` makes, in the type and with the distance asked for."""

    kind: DistanceKind = "image"
    teacher_heads: int = 6
    dtype: torch.dtype = torch.float32
    has_mixing: bool = True
    only_some_rows: bool = False
    odd_heads: bool = False
    """Head sizes that are no powers of two, and not the same in both models."""

    def task(self) -> Task:
        case = make_case(self.teacher_heads, self.dtype)
        # As parameters are; and rounded to half precision their sums would not be 1.
        mixing_SH = make_case(self.teacher_heads, torch.float32).mixing_SH
        student, teacher = case.student, case.teacher
        if self.odd_heads:
            student, teacher = _first(student, 5), _first(teacher, 11)
        for tensor in (student.q_BHTD, student.k_BKTD, teacher.q_BHTD, teacher.k_BKTD):
            tensor[1, :, 23:] = 1e3
        rows = case.rows()
        if self.only_some_rows:
            mask_BT = torch.zeros(2, 37, dtype=torch.bool)
            mask_BT[0, [0, 3, 20, 36]] = True
            mask_BT[1, 22] = True
            rows = rows_where(mask_BT)
        return Task(
            student=student,
            teacher=teacher,
            rows=rows,
            places=case.places,
            tilt=tilted(self.kind),
            mixing_SH=mixing_SH if self.has_mixing else None,
            max_pairs=CHUNK_PAIRS,
        )


def _first(model: QueryKey, size: int) -> QueryKey:
    return dataclasses.replace(model, q_BHTD=model.q_BHTD[..., :size], k_BKTD=model.k_BKTD[..., :size])


KERNELS = {
    "tokens": Kernels(kind="token"),
    "positions": Kernels(kind="position"),
    "images": Kernels(kind="image"),
    "2 teacher heads": Kernels(teacher_heads=2),
    "one to one": Kernels(teacher_heads=4, has_mixing=False),
    "some rows": Kernels(only_some_rows=True),
    "odd head sizes": Kernels(odd_heads=True),
    "bfloat16": Kernels(dtype=torch.bfloat16),
    "float16": Kernels(dtype=torch.float16),
}


def through_autograd(task: Task) -> list[Tensor]:
    """The loss and its gradients for q, k and the mixing, chosen by name."""
    assert task.mixing_SH is not None
    leaves = [task.student.q_BHTD, task.student.k_BKTD, task.mixing_SH]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = attention_matching(
        task.student,
        task.teacher,
        rows=task.rows,
        places=task.places,
        tilt=task.tilt,
        mixing_SH=task.mixing_SH,
        chunk_bytes=4 * 2 * 6 * task.max_pairs,
        kernel="triton",
    )
    return [loss.detach(), *torch.autograd.grad(loss, leaves, grad_outputs=torch.tensor(UPSTREAM))]


def main(path: Path) -> None:
    from distill.losses.matching_check import works
    from distill.losses.matching_triton import Tiles, triton_sums

    tiles = Tiles(rows=16, keys=32, pairs=128, repeats=2)

    def sums(task: Task, wants_qk: bool = True, wants_mixing: bool = True) -> dict[str, Tensor | None]:
        found = triton_sums(task, wants_qk=wants_qk, wants_mixing=wants_mixing, tiles=tiles)
        return dataclasses.asdict(found)

    def in_a_training() -> bool:
        """As under Accelerate's mixed precision."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return works(images())

    images = KERNELS["images"].task
    extra: dict[str, Callable[[], object]] = {
        "only the student": lambda: sums(KERNELS["some rows"].task(), wants_mixing=False),
        "only the mixing": lambda: sums(KERNELS["some rows"].task(), wants_qk=False),
        "through autograd": lambda: through_autograd(images()),
        "works": in_a_training,
    }
    found = {name: sums(kernels.task(), wants_mixing=kernels.has_mixing) for name, kernels in KERNELS.items()}
    torch.save(found | {name: make() for name, make in extra.items()}, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
