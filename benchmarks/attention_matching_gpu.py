"""The GPU's rows of `attention_matching.py`, which calls this where there is a CUDA device. Never run on one so far.

The same layer in bfloat16, with the chunk of the recipes for large models; `triton` is the kernels, asked for by name,
so that one that does not compile is an error here, and `torch` the operators that run anywhere.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.attention_matching import (
    MEMORY_TARGET_GIB,
    TIME_TARGET,
    Layer,
    make_layer,
    matching,
    sdpa,
    slope_rows,
)
from benchmarks.common import Row
from distill.losses.kinds import MatchingKernel

CHUNK_MIB = 64
"""As in the recipes."""
ROUNDS = {1024: 15, 4096: 9, 16384: 5, 32768: 3, 65536: 1, 131072: 1}
QUICK_ROUNDS = {1024: 2, 2048: 2}
MEMORY_TARGET_TOKENS = 32768
KERNELS: tuple[MatchingKernel, ...] = ("triton", "torch")


def measure(quick: bool) -> list[Row]:
    rows: list[Row] = []
    memory: dict[MatchingKernel, dict[int, float]] = {kernel: {} for kernel in KERNELS}
    for length, rounds in (QUICK_ROUNDS if quick else ROUNDS).items():
        layer = make_layer(length, "cuda", torch.bfloat16)
        rows.append(sdpa_row(layer))
        for kernel in KERNELS:
            memory[kernel][length] = peak_bytes(layer, kernel)
            rows += rows_of(layer, kernel, rounds, memory[kernel][length])
        print(f"measured {length} tokens on the GPU", flush=True)
    for kernel in KERNELS:
        rows += slope_rows(memory[kernel], where=f"GPU, {kernel}: ")
    return rows


def sdpa_row(layer: Layer) -> Row:
    sdpa(layer)  # The first call starts the libraries.
    length = layer.q_BHTD.shape[2]
    return Row(name=f"GPU, {length} tokens: SDPA", value=seconds(lambda: sdpa(layer)), unit="s")


def rows_of(layer: Layer, kernel: MatchingKernel, rounds: int, num_bytes: float) -> list[Row]:
    length = layer.q_BHTD.shape[2]
    # The peak's call has compiled the kernels.
    pairs = [(seconds(lambda: sdpa(layer)), seconds(lambda: matching(layer, kernel, CHUNK_MIB))) for _ in range(rounds)]
    ratio = float(np.median([ours / theirs for theirs, ours in pairs]))
    gib = num_bytes / 2**30
    is_target = kernel == "triton"
    has_memory_target = is_target and length == MEMORY_TARGET_TOKENS
    return [
        Row(
            name=f"GPU, {length} tokens: time, {kernel}",
            value=ratio,
            unit="of SDPA forward and backward, at most",
            target=TIME_TARGET if is_target else None,
            met=ratio <= TIME_TARGET if is_target else None,
        ),
        Row(
            name=f"GPU, {length} tokens: memory, {kernel}",
            value=gib,
            unit="GiB beyond the inputs, at most",
            target=MEMORY_TARGET_GIB if has_memory_target else None,
            met=gib < MEMORY_TARGET_GIB if has_memory_target else None,
        ),
    ]


def seconds(call: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(layer: Layer, kernel: MatchingKernel) -> float:
    """Allocated memory at its peak during the call, beyond that before it."""
    for leaf in layer.leaves():
        leaf.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    matching(layer, kernel, CHUNK_MIB)
    return torch.cuda.max_memory_allocated() - before
