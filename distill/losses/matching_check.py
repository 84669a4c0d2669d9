"""Whether the Triton kernels of the attention matching are right on this device: they are tried before they are used.

They are proven in Triton's interpreter and compile for GPUs, but were never run on one. So a small task of the same
types and heads as the one at hand is first done both ways; where the two differ, or Triton fails, the run goes on with
PyTorch's operators. Only a fault of memory on the device is beyond that: CUDA ends the process's use of it.
"""

import functools
import logging
from dataclasses import dataclass

import torch

from distill.losses.kinds import DistanceKind
from distill.losses.matching import Sums, Task, Tilt, chunked_sums
from distill.losses.matching_triton import is_interpreted, triton_sums
from distill.losses.rows import Places, rows_where
from distill.signals import QueryKey

_logger = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 2e-2}
"""How far a gradient may be off, as a share of its largest value, by the student's type."""
_TOTAL_TOLERANCE = 1e-3
"""Of the KL itself, which is float32 in any type."""

# Of the small task: samples of unequal lengths, over more than one tile and more than one chunk.
_LENGTHS = (100, 71)
_MAX_PAIRS = 64 * 64


@dataclass(frozen=True, kw_only=True)
class _Heads:
    """What the kernels are compiled for, of one model."""

    dtype: torch.dtype
    num_heads: int
    num_key_value_heads: int
    head_size: int
    scale: float

    @classmethod
    def of(cls, model: QueryKey) -> "_Heads":
        return cls(
            dtype=model.q_BHTD.dtype,
            num_heads=model.q_BHTD.shape[1],
            num_key_value_heads=model.k_BKTD.shape[1],
            head_size=model.q_BHTD.shape[3],
            scale=model.scale,
        )

    def random(self, device: torch.device, generator: torch.Generator) -> QueryKey:
        """Queries and keys of the small task, on the CPU's generator: the device's is the training's."""
        shapes = [
            (len(_LENGTHS), heads, max(_LENGTHS), self.head_size)
            for heads in (self.num_heads, self.num_key_value_heads)
        ]
        q_BHTD, k_BKTD = (torch.randn(shape, generator=generator).to(device, self.dtype) for shape in shapes)
        return QueryKey(q_BHTD=q_BHTD, k_BKTD=k_BKTD, scale=self.scale)


def obstacle(task: Task) -> str | None:
    """What of this task the kernels cannot take; None if they can take it."""
    for model in (task.student, task.teacher):
        q_dtype, k_dtype = model.q_BHTD.dtype, model.k_BKTD.dtype
        if q_dtype not in TOLERANCES or q_dtype != k_dtype:
            return f"q in {q_dtype} with k in {k_dtype}"
    device = task.student.q_BHTD.device
    return None if device.type == "cuda" or is_interpreted() else f"tensors on {device}"


def works(task: Task) -> bool:
    """Whether the kernels do a small task like this one as `chunked_sums` does; logs a warning if they do not.

    Tried once in a process for each device, types and heads.
    """
    device = task.student.q_BHTD.device
    heads = _Heads.of(task.student), _Heads.of(task.teacher)
    # Under autocast PyTorch's own operators would be off.
    with torch.autocast(device.type, enabled=False):
        return _tried(device, *heads, task.tilt.kind, task.mixing_SH is not None)


@functools.cache
def _tried(device: torch.device, student: _Heads, teacher: _Heads, kind: DistanceKind, has_mixing: bool) -> bool:
    task = _small_task(device, student, teacher, kind, has_mixing)
    expected = chunked_sums(task, wants_qk=True, wants_mixing=has_mixing)
    try:
        reason = disagreement(triton_sums(task, wants_qk=True, wants_mixing=has_mixing), expected, student.dtype)
    except Exception as error:
        # Whatever the compiler, the driver or the launch may raise, a training must not end with it.
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        _logger.warning(
            "attention matching: its Triton kernels are not used on %s, PyTorch's operators are instead, which are "
            "slower; loss.matching.kernel: torch leaves the kernels untried. Reason: %s",
            device,
            reason,
        )
    return reason is None


def disagreement(found: Sums, expected: Sums, dtype: torch.dtype) -> str | None:
    """In what the kernels' sums are not the expected ones; None if they are.

    Args:
        dtype: the student's.
    """
    named = {
        "the KL": (found.total, expected.total, _TOTAL_TOLERANCE),
        "the gradient of q": (found.grad_q_BSRD, expected.grad_q_BSRD, TOLERANCES[dtype]),
        "the gradient of k": (found.grad_k_BKTD, expected.grad_k_BKTD, TOLERANCES[dtype]),
        "the gradient of the mixing": (found.grad_mixing_SH, expected.grad_mixing_SH, TOLERANCES[dtype]),
    }
    for name, (ours, truth, tolerance) in named.items():
        if ours is None or truth is None:
            continue
        error = float((ours - truth).abs().max() / truth.abs().max())
        if not error <= tolerance:
            return f"{name} is off by {error:.2g} of its largest value, expected at most {tolerance:g}"
    return None


def _small_task(device: torch.device, student: _Heads, teacher: _Heads, kind: DistanceKind, has_mixing: bool) -> Task:
    generator = torch.Generator().manual_seed(0)
    length = max(_LENGTHS)
    is_token_BT = torch.arange(length) < torch.tensor(_LENGTHS)[:, None]
    steps_3BT = torch.randint(0, 2, (3, *is_token_BT.shape), generator=generator)
    places = Places(
        position_ids_3BT=steps_3BT.cumsum(dim=2).to(device),
        images_before_BT=(torch.arange(length) // 20).expand_as(is_token_BT).to(device),
    )
    mixing_SH = torch.randn(student.num_heads, teacher.num_heads, generator=generator).softmax(dim=-1).to(device)
    return Task(
        student=student.random(device, generator),
        teacher=teacher.random(device, generator),
        rows=rows_where(is_token_BT.to(device)),
        places=places,
        tilt=Tilt(kind=kind, reference_distance=2.0, gamma=0.7),
        mixing_SH=mixing_SH if has_mixing else None,
        max_pairs=_MAX_PAIRS,
    )
