"""The Triton kernels of `matching_triton`, which says what each is for.

A kernel's arguments are pointers to contiguous tensors, numbers, and in capitals what it is compiled for.
"""

# A kernel's arguments have no Python types, and neither has Triton, which is not there on every system.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"

import torch
import triton
import triton.language as tl

# In place of -inf, so that no difference is NaN.
_UNSEEN = tl.constexpr(-1e30)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _load_rows(q, sample, head, row, num_rows, HEAD: tl.constexpr, BLOCK_D: tl.constexpr):
    """One head's q at these rows, [R, D], 0 where there is none."""
    column = tl.arange(0, BLOCK_D)
    start = (sample * tl.num_programs(1) + head).to(tl.int64) * num_rows
    inside = (row < num_rows)[:, None] & (column < HEAD)[None, :]
    return tl.load(q + (start + row)[:, None] * HEAD + column[None, :], mask=inside, other=0.0)


@triton.jit
def _tilted_logits(
    q_RD,
    k,
    row_places,
    key_places,
    sample,
    head,
    row,
    key,
    last_R,
    num_rows,
    num_tokens,
    group,
    scale,
    gamma,
    per_distance,
    AXES: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A tile of biased logits, [R, N], _UNSEEN where a key is not seen."""
    column = tl.arange(0, BLOCK_D)
    num_samples, num_key_value_heads = tl.num_programs(2), tl.num_programs(1) // group
    start = (sample * num_key_value_heads + head // group).to(tl.int64) * num_tokens
    inside = (key < num_tokens)[None, :] & (column < HEAD)[:, None]
    k_DN = tl.load(k + (start + key)[None, :] * HEAD + column[:, None], mask=inside, other=0.0)
    if WIDEN:
        logits_RN = tl.dot(q_RD.to(tl.float32), k_DN.to(tl.float32))
    else:
        logits_RN = tl.dot(q_RD, k_DN, input_precision="tf32x3")
    distance_RN = tl.zeros(logits_RN.shape, tl.int32)
    for axis in tl.static_range(AXES):
        line = axis * num_samples + sample
        row_place = tl.load(row_places + line * num_rows + row, mask=row < num_rows, other=0)
        key_place = tl.load(key_places + line * num_tokens + key, mask=key < num_tokens, other=0)
        distance_RN = tl.maximum(distance_RN, tl.abs(row_place[:, None] - key_place[None, :]))
    bias_RN = gamma * tl.log(1 + distance_RN.to(tl.float32) * per_distance)
    return tl.where(key[None, :] <= last_R[:, None], logits_RN * scale + bias_RN, _UNSEEN)


@triton.jit
def log_sum_exp_kernel(
    result,
    q,
    k,
    last,
    row_places,
    key_places,
    num_rows,
    num_tokens,
    group,
    scale,
    gamma,
    per_distance,
    AXES: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A program takes a tile of rows of one head past all the keys that they see, as flash attention does."""
    head, sample = tl.program_id(1), tl.program_id(2)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    last_R = tl.load(last + sample * num_rows + row, mask=row < num_rows, other=-1)
    q_RD = _load_rows(q, sample, head, row, num_rows, HEAD, BLOCK_D)
    largest_R = tl.full([BLOCK_R], _UNSEEN, tl.float32)
    sum_R = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, tl.max(last_R, 0) + 1, BLOCK_N):
        logits_RN = _tilted_logits(
            q_RD,
            k,
            row_places,
            key_places,
            sample,
            head,
            row,
            start + tl.arange(0, BLOCK_N),
            last_R,
            num_rows,
            num_tokens,
            group,
            scale,
            gamma,
            per_distance,
            AXES,
            HEAD,
            BLOCK_D,
            WIDEN,
        )
        before_R = largest_R
        largest_R = tl.maximum(before_R, tl.max(logits_RN, 1))
        sum_R = sum_R * tl.exp(before_R - largest_R) + tl.sum(tl.exp(logits_RN - largest_R[:, None]), 1)
    start = (sample * tl.num_programs(1) + head) * num_rows
    # The sum is 0 only where there is no row.
    tl.store(result + start + row, largest_R + tl.log(tl.maximum(sum_R, _TINY)), mask=row < num_rows)


@triton.jit
def log_probability_kernel(
    result,
    log_sum_exp,
    first_key,
    num_keys,
    q,
    k,
    last,
    row_places,
    key_places,
    num_rows,
    num_tokens,
    group,
    scale,
    gamma,
    per_distance,
    AXES: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A program makes one tile of one head's map."""
    head, sample = tl.program_id(1), tl.program_id(2)
    row_tiles = tl.cdiv(num_rows, BLOCK_R)
    row = tl.program_id(0) % row_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(0) // row_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    last_R = tl.load(last + sample * num_rows + row, mask=row < num_rows, other=-1)
    logits_RN = _tilted_logits(
        _load_rows(q, sample, head, row, num_rows, HEAD, BLOCK_D),
        k,
        row_places,
        key_places,
        sample,
        head,
        row,
        first_key + column,
        last_R,
        num_rows,
        num_tokens,
        group,
        scale,
        gamma,
        per_distance,
        AXES,
        HEAD,
        BLOCK_D,
        WIDEN,
    )
    start = (sample * tl.num_programs(1) + head).to(tl.int64) * num_rows
    sum_R = tl.load(log_sum_exp + start + row, mask=row < num_rows, other=0.0)
    seen_RN = logits_RN > 0.5 * _UNSEEN
    inside = (row < num_rows)[:, None] & (column < num_keys)[None, :]
    offset_RN = (start + row)[:, None] * num_keys + column[None, :]
    tl.store(result + offset_RN, tl.where(seen_RN, logits_RN - sum_R[:, None], _UNSEEN), mask=inside)


@triton.jit
def divergence_kernel(
    log_s,
    log_t,
    mixing,
    error,
    totals,
    grads,
    num_pairs,
    STUDENT_HEADS: tl.constexpr,
    TEACHER_HEADS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_X: tl.constexpr,
    REPEATS: tl.constexpr,
):
    """A program takes all heads of some pairs of a row and a key. No mixing, error or grads: None."""
    sample = tl.program_id(1).to(tl.int64)
    program = sample * tl.num_programs(0) + tl.program_id(0)
    s, h = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_H)
    offset_SH = s[:, None] * TEACHER_HEADS + h[None, :]
    inside_SH = (s < STUDENT_HEADS)[:, None] & (h < TEACHER_HEADS)[None, :]
    total_X = tl.zeros([BLOCK_X], tl.float32)
    grad_SH = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
    for repeat in range(REPEATS):
        pair = (tl.program_id(0) * REPEATS + repeat) * BLOCK_X + tl.arange(0, BLOCK_X)
        offset_SX = (sample * STUDENT_HEADS + s)[:, None] * num_pairs + pair[None, :]
        inside_SX = (s < STUDENT_HEADS)[:, None] & (pair < num_pairs)[None, :]
        offset_HX = (sample * TEACHER_HEADS + h)[:, None] * num_pairs + pair[None, :]
        inside_HX = (h < TEACHER_HEADS)[:, None] & (pair < num_pairs)[None, :]
        log_s_SX = tl.load(log_s + offset_SX, mask=inside_SX, other=_UNSEEN)
        p_HX = tl.exp(tl.load(log_t + offset_HX, mask=inside_HX, other=_UNSEEN))
        if mixing is None:
            p_SX = p_HX
        else:
            mixing_SH = tl.load(mixing + offset_SH, mask=inside_SH, other=0.0)
            p_SX = tl.dot(mixing_SH, p_HX, input_precision="tf32x3")
        ratio_SX = tl.where(log_s_SX > 0.5 * _UNSEEN, tl.log(tl.maximum(p_SX, _TINY)) - log_s_SX, 0.0)
        total_X += tl.sum(p_SX * ratio_SX, 0)
        if error is not None:
            tl.store(error + offset_SX, tl.exp(log_s_SX) - p_SX, mask=inside_SX)
        if grads is not None:
            grad_SH = tl.dot(ratio_SX, tl.trans(p_HX), grad_SH, input_precision="tf32x3")
    tl.store(totals + program, tl.sum(total_X, 0))
    if grads is not None:
        tl.store(grads + program * STUDENT_HEADS * TEACHER_HEADS + offset_SH, grad_SH, mask=inside_SH)
