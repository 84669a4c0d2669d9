"""The attention matching's sums by Triton kernels, for CUDA devices. Never run on a GPU so far: see `matching_check`.

A chunk is some rows times some keys, of all samples and heads, so that its maps stay small at any length. Of each
chunk of rows the log-sum-exps come first (`log_sum_exp_kernel`, no map in memory), and then for each chunk of keys

1. `log_probability_kernel` writes each model's map: products, scale, tilt, causal mask and normalisation in one go;
2. `divergence_kernel` reads both once and does the rest with all heads of a few pairs (row, key) on chip: mixes the
   teacher's heads, sums the KL and the mixing's gradient, and writes the error p~^s - P, the gradient of the logits;
3. two matrix products by PyTorch take the error to q and k.

The floor for a pair (row, key), with S student and H teacher heads of size D: 4D(S + H) FLOP for each model's products,
once for the log-sum-exps and once for the maps, 4DS for the gradients of q and k, and 4SH for the mixing and its own.
Bytes: 8(S + H) for the maps in float32, written and read once, and 6S for the error in bfloat16, written once and read
twice. With 28 and 40 heads of 128 that is 54 kFLOP and 712 B, of which what fits in the chip's cache never reaches
memory; PyTorch's operators one after the other move about 3.9 kB.

Sums are float32; float32 inputs are multiplied as three products in TensorFloat-32. No sum is atomic, so that equal
inputs give equal results.

Letters beside those of `matching`: A axes of the distance, N keys of a chunk, X pairs of a tile, P programs.
"""

# mypy: disable-error-code="import-untyped, import-not-found"

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from distill.losses.kinds import DistanceKind
from distill.losses.matching import Sums, Task, Tilt
from distill.losses.matching_kernels import divergence_kernel, log_probability_kernel, log_sum_exp_kernel
from distill.losses.rows import Places, Rows

# Of a matrix product in Triton, each way.
_LEAST_TILE = 16
# Of the compiler: with these no kernel spills registers on sm_90 at heads of 128 (read off ptxas).
_OPTIONS = {"num_warps": 8, "num_stages": 2}


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """What a program holds at a time, each a power of two and at least 16. Not tuned: no GPU was at hand."""

    rows: int = 64
    keys: int = 64
    pairs: int = 64
    """Of a row and a key, where a program has all their heads."""
    repeats: int = 16
    """How many tiles of pairs a program sums over."""


DEFAULT_TILES = Tiles()


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels, with the variable TRITON_INTERPRET, which works on any device."""
    return bool(triton.knobs.runtime.interpret)


def triton_sums(task: Task, *, wants_qk: bool, wants_mixing: bool, tiles: Tiles = DEFAULT_TILES) -> Sums:
    """What `matching.chunked_sums` does, in the same memory: three maps of a chunk live at a time.

    Takes float32, float16 and bfloat16. In bfloat16 the error is rounded before its products with q and k, and so is
    each chunk's product, as in flash attention; they are summed in float32.
    """
    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device_of(task.student.q_BHTD):  # type: ignore[no-untyped-call]
        return _sums(task, wants_qk, wants_mixing, tiles)


def _sums(task: Task, wants_qk: bool, wants_mixing: bool, tiles: Tiles) -> Sums:
    sums = Sums.zeros(task, torch.float32, wants_qk=wants_qk, wants_mixing=wants_mixing)
    student_k_BKTD, teacher_k_BKTD = task.student.k_BKTD.contiguous(), task.teacher.k_BKTD.contiguous()
    places_ABT = _axes(task.places, task.tilt.kind)
    error_dtype = torch.bfloat16 if task.student.q_BHTD.dtype == torch.bfloat16 else torch.float32
    for piece, num_keys in _row_pieces(task):
        view = _View.of(task, piece, places_ABT, tiles)
        student = _Queries(view.rows.gather(task.student.q_BHTD), student_k_BKTD, task.student.scale)
        teacher = _Queries(view.rows.gather(task.teacher.q_BHTD), teacher_k_BKTD, task.teacher.scale)
        student_sum_BSR, teacher_sum_BHR = view.log_sum_exp(student), view.log_sum_exp(teacher)
        for keys in _key_pieces(task, piece, num_keys):
            log_s_BSRN = view.log_probabilities(student, student_sum_BSR, keys)
            log_t_BHRN = view.log_probabilities(teacher, teacher_sum_BHR, keys)
            error_BSRN = torch.empty_like(log_s_BSRN, dtype=error_dtype) if wants_qk else None
            _add_divergence(sums, log_s_BSRN, log_t_BHRN, task.mixing_SH, error_BSRN, tiles)
            if error_BSRN is not None and sums.grad_q_BSRD is not None and sums.grad_k_BKTD is not None:
                grad_q_BSRD, grad_k_BKND = sums.grad_q_BSRD[:, :, piece], sums.grad_k_BKTD[:, :, keys]
                student.add_gradients(grad_q_BSRD, grad_k_BKND, error_BSRN, keys)
    for gradient in (sums.grad_q_BSRD, sums.grad_k_BKTD):
        if gradient is not None:
            gradient.mul_(task.student.scale)
    if sums.grad_mixing_SH is not None:
        # d(P log(P/p))/dP = log(P/p) + 1, and each teacher row sums to 1.
        sums.grad_mixing_SH.add_(task.rows.valid_BR.sum())
    return sums


def _row_pieces(task: Task) -> Iterator[tuple[slice, int]]:
    """Chunks of rows, and the number of keys that each chunk's last row sees."""
    last_R = task.rows.index_BR.masked_fill(~task.rows.valid_BR, 0).amax(dim=0).tolist()
    # As many rows as keys: the least to read for a chunk's gradients.
    step = max(1, math.isqrt(task.max_pairs))
    for start in range(0, len(last_R), step):
        piece = slice(start, min(start + step, len(last_R)))
        yield piece, max(last_R[piece]) + 1


def _key_pieces(task: Task, rows: slice, num_keys: int) -> Iterator[slice]:
    """Chunks of keys, in multiples of 16, so that a map's rows are aligned."""
    step = 16 * max(1, task.max_pairs // (rows.stop - rows.start) // 16)
    for start in range(0, num_keys, step):
        yield slice(start, min(start + step, num_keys))


@dataclass(frozen=True)
class _Queries:
    """One model's queries at a chunk of rows, and all its keys; both contiguous, which the kernels rely on."""

    q_BHRD: Tensor
    k_BKTD: Tensor
    scale: float

    def add_gradients(self, grad_q_BHRD: Tensor, grad_k_BKND: Tensor, error_BHRN: Tensor, keys: slice) -> None:
        """Adds what the error of a chunk's logits means for q and for the chunk's keys, but for the scale."""
        error_BKXN = self._grouped(error_BHRN)
        q_BKXD = self._grouped(self.q_BHRD).to(error_BHRN.dtype)
        k_BKND = self.k_BKTD[:, :, keys].to(error_BHRN.dtype)
        grad_q_BHRD.add_((error_BKXN @ k_BKND).view(self.q_BHRD.shape))
        grad_k_BKND.add_(error_BKXN.mT @ q_BKXD)

    def _grouped(self, x_BHRX: Tensor) -> Tensor:
        """[B, K, G·R, …]: the rows of all the query heads of a key-value head, one under the other."""
        return x_BHRX.view(len(x_BHRX), self.k_BKTD.shape[1], -1, x_BHRX.shape[3])


@dataclass(frozen=True)
class _View:
    """A chunk of rows: which keys each sees, and how far from them it is. Starts the kernels that make maps."""

    rows: Rows
    last_BR: Tensor
    """The last key that a row sees; -1 where there is no row, which then has no part in any sum."""
    row_places_ABR: Tensor
    key_places_ABT: Tensor
    tilt: Tilt
    tiles: Tiles

    @classmethod
    def of(cls, task: Task, piece: slice, places_ABT: Tensor, tiles: Tiles) -> "_View":
        index_BR, valid_BR = task.rows.index_BR[:, piece], task.rows.valid_BR[:, piece]
        return cls(
            rows=Rows(index_BR=index_BR, valid_BR=valid_BR),
            last_BR=index_BR.masked_fill(~valid_BR, -1).to(torch.int32).contiguous(),
            row_places_ABR=places_ABT.gather(2, index_BR.expand(len(places_ABT), -1, -1)),
            key_places_ABT=places_ABT,
            tilt=task.tilt,
            tiles=tiles,
        )

    def log_sum_exp(self, model: _Queries) -> Tensor:
        """Of each row's tilted logits, [B, H, R]."""
        num_samples, num_heads, num_rows, _ = model.q_BHRD.shape
        result_BHR = model.q_BHRD.new_empty((num_samples, num_heads, num_rows), dtype=torch.float32)
        grid = (triton.cdiv(num_rows, self.tiles.rows), num_heads, num_samples)
        log_sum_exp_kernel[grid](result_BHR, **self._arguments(model), **_OPTIONS)
        return result_BHR

    def log_probabilities(self, model: _Queries, log_sum_exp_BHR: Tensor, keys: slice) -> Tensor:
        """The map at a chunk of keys, [B, H, R, N]; -1e30 where a key is not seen."""
        num_samples, num_heads, num_rows, _ = model.q_BHRD.shape
        num_keys = keys.stop - keys.start
        map_BHRN = torch.empty((*log_sum_exp_BHR.shape, num_keys), dtype=torch.float32, device=log_sum_exp_BHR.device)
        grid = (triton.cdiv(num_rows, self.tiles.rows) * triton.cdiv(num_keys, self.tiles.keys), num_heads, num_samples)
        log_probability_kernel[grid](
            map_BHRN, log_sum_exp_BHR, keys.start, num_keys, **self._arguments(model), **_OPTIONS
        )
        return map_BHRN

    def _arguments(self, model: _Queries) -> dict[str, Any]:
        num_heads, num_rows, head_size = model.q_BHRD.shape[1:]
        return {
            "q": model.q_BHRD,
            "k": model.k_BKTD,
            "last": self.last_BR,
            "row_places": self.row_places_ABR,
            "key_places": self.key_places_ABT,
            "num_rows": num_rows,
            "num_tokens": model.k_BKTD.shape[2],
            "group": num_heads // model.k_BKTD.shape[1],
            "scale": model.scale,
            "gamma": self.tilt.gamma,
            "per_distance": 1 / self.tilt.reference_distance,
            "AXES": len(self.key_places_ABT),
            "HEAD": head_size,
            "BLOCK_R": self.tiles.rows,
            "BLOCK_N": self.tiles.keys,
            "BLOCK_D": _padded(head_size),
            # Triton's interpreter multiplies bfloat16 as the integers that it stores them in.
            "WIDEN": is_interpreted(),
        }


def _axes(places: Places, kind: DistanceKind) -> Tensor:
    """Whole numbers [A, B, T]: a distance is the largest of their differences."""
    if kind == "position":
        return places.position_ids_3BT.to(torch.int32).contiguous()
    images_BT = places.images_before_BT
    if kind == "image":
        return images_BT.to(torch.int32).contiguous()[None]
    return torch.arange(images_BT.shape[1], dtype=torch.int32, device=images_BT.device).repeat(1, len(images_BT), 1)


def _padded(size: int) -> int:
    return max(_LEAST_TILE, 1 << (size - 1).bit_length())


def _add_divergence(
    sums: Sums,
    log_s_BSRN: Tensor,
    log_t_BHRN: Tensor,
    mixing_SH: Tensor | None,
    error_BSRN: Tensor | None,
    tiles: Tiles,
) -> None:
    """Adds a chunk's KL and its mixing's gradient, and writes the error."""
    num_samples, num_heads, num_teacher_heads = len(log_s_BSRN), log_s_BSRN.shape[1], log_t_BHRN.shape[1]
    num_pairs = log_s_BSRN.shape[2] * log_s_BSRN.shape[3]
    programs = triton.cdiv(num_pairs, tiles.pairs * tiles.repeats)
    totals_P = log_s_BSRN.new_empty(num_samples * programs)
    grad_mixing_SH = sums.grad_mixing_SH
    grads_PSH = None if grad_mixing_SH is None else log_s_BSRN.new_empty((len(totals_P), *grad_mixing_SH.shape))
    divergence_kernel[(programs, num_samples)](
        log_s_BSRN,
        log_t_BHRN,
        None if mixing_SH is None else mixing_SH.to(torch.float32).contiguous(),
        error_BSRN,
        totals_P,
        grads_PSH,
        num_pairs,
        STUDENT_HEADS=num_heads,
        TEACHER_HEADS=num_teacher_heads,
        BLOCK_S=_padded(num_heads),
        BLOCK_H=_padded(num_teacher_heads),
        BLOCK_X=tiles.pairs,
        REPEATS=tiles.repeats,
        **_OPTIONS,
    )
    sums.total.add_(totals_P.sum())
    if grad_mixing_SH is not None and grads_PSH is not None:
        grad_mixing_SH.add_(grads_PSH.sum(dim=0))
