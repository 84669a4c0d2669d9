"""What the attention matching costs: time beside the same layer's SDPA, and memory against the length.

One layer of Qwen2.5-VL-7B's shape (28 query heads of 128 over 4 key-value heads), student and teacher alike, every row
counted, heads mixed 28 to 28. Each length has a process of its own, so that its peak of memory is its own. Where there
is a CUDA device, `attention_matching_gpu.py` adds its rows: the Triton kernels and PyTorch's operators, to 128k tokens.

    python benchmarks/attention_matching.py              about 15 minutes on one core
    python benchmarks/attention_matching.py --quick
"""

# ruff: noqa: E402 (the path comes before the project's own packages)
import sys
from pathlib import Path

# Beside this file is one with the name of a package of the project.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Row, describe_machine, parse_arguments, report
from distill.losses.kinds import MatchingKernel
from distill.losses.matching import Tilt, attention_matching
from distill.losses.rows import Places, rows_where
from distill.recipe import MatchingConfig
from distill.signals import QueryKey

HEADS, KEY_VALUE_HEADS, HEAD_SIZE = 28, 4, 128
TOKENS_AN_IMAGE = 20
TIME_TARGET = 1.5
MEMORY_TARGET_GIB = 2.0
TILT = Tilt(kind="image", reference_distance=1.0, gamma=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured: lengths in tokens, and rounds of each."""

    timed: dict[int, int]
    materialised: int
    """The longest with whole maps in memory, about seven of them."""
    longest: int
    """For memory alone."""


FULL = Size(timed={1024: 15, 2048: 9, 4096: 5, 8192: 3, 16384: 1}, materialised=2048, longest=32768)
QUICK = Size(timed={128: 3, 256: 3}, materialised=256, longest=512)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer's tensors, student and teacher."""

    q_BHTD: Tensor
    k_BKTD: Tensor
    v_BKTD: Tensor
    teacher: QueryKey
    mixing_SH: Tensor
    places: Places

    @property
    def student(self) -> QueryKey:
        return QueryKey(q_BHTD=self.q_BHTD, k_BKTD=self.k_BKTD, scale=HEAD_SIZE**-0.5)

    def leaves(self) -> list[Tensor]:
        return [self.q_BHTD, self.k_BKTD, self.v_BKTD, self.mixing_SH]


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*(int(number) for number in sys.argv[2:]))))
        return
    arguments = parse_arguments(__doc__)
    size = QUICK if arguments.quick else FULL
    rows, memory = [], {}
    for length, rounds in size.timed.items():
        found = in_a_process(length, rounds, int(length <= size.materialised))
        memory[length] = found["matching_bytes"]
        rows += rows_of(length, found)
    longest = in_a_process(size.longest, 0, 0)["matching_bytes"]
    memory[size.longest] = longest
    gib = longest / 2**30
    name = f"{size.longest} tokens: memory beyond the inputs"
    rows.append(Row(name=name, value=gib, unit="GiB, at most", target=MEMORY_TARGET_GIB, met=gib < MEMORY_TARGET_GIB))
    rows += slope_rows(memory)
    if torch.cuda.is_available():
        rows += gpu_rows(arguments.quick)
    else:
        print("no CUDA device: the Triton kernels are not measured")
    machine = describe_machine(["torch"]) | {"threads": 1, "quick": arguments.quick}
    report(machine, rows, arguments.json)


def in_a_process(length: int, rounds: int, with_materialised: int) -> dict[str, float]:
    command = [sys.executable, __file__, "measure", str(length), str(rounds), str(with_materialised)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    print(f"measured {length} tokens", flush=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def gpu_rows(quick: bool) -> list[Row]:
    from benchmarks import attention_matching_gpu  # It imports this file.

    return attention_matching_gpu.measure(quick)


def rows_of(length: int, found: dict[str, float]) -> list[Row]:
    rows = []
    for clock in ("cpu", "wall"):
        ratio = found[f"ratio_{clock}"]
        rows.append(
            Row(
                name=f"{length} tokens: time, {clock}",
                value=ratio,
                unit="of SDPA forward and backward, at most",
                target=TIME_TARGET,
                met=ratio <= TIME_TARGET,
            )
        )
    rows.append(Row(name=f"{length} tokens: SDPA", value=found["sdpa_seconds"], unit="s of CPU time"))
    rows.append(Row(name=f"{length} tokens: memory", value=found["matching_bytes"] / 2**20, unit="MiB"))
    if "materialised_ratio" in found:
        share = found["materialised_bytes"] / found["matching_bytes"]
        rows.append(
            Row(name=f"{length} tokens: materialised, CPU time", value=found["materialised_ratio"], unit="of SDPA's")
        )
        rows.append(Row(name=f"{length} tokens: materialised, memory", value=share, unit="of the matching's"))
    return rows


def slope_rows(memory: dict[int, float], where: str = "") -> list[Row]:
    """Memory as a line in the length, and the exponent of the power law that fits it best."""
    lengths, sizes = np.array(list(memory)), np.array(list(memory.values()))
    slope, _ = np.polyfit(lengths, sizes, 1)
    exponent, _ = np.polyfit(np.log(lengths[-3:]), np.log(sizes[-3:]), 1)
    return [
        Row(name=f"{where}memory's slope", value=slope / 1024, unit="KiB a token"),
        Row(
            name=f"{where}memory's exponent",
            value=exponent,
            unit="of the length",
            target=1.1,
            met=bool(exponent <= 1.1),
        ),
    ]


# In a process of its own


def measure(length: int, rounds: int, with_materialised: int) -> dict[str, float]:
    """Peak memory of one first call, then the median of paired times."""
    layer = make_layer(length)
    found = {"matching_bytes": peak_bytes(lambda: matching(layer))}
    if rounds:
        found |= time_ratios(layer, rounds)
    if with_materialised:
        # After the matching, whose peak it would hide.
        found["materialised_bytes"] = peak_bytes(lambda: materialised(layer))
        seconds = min(cpu_and_wall(lambda: materialised(layer))[0] for _ in range(2))
        found["materialised_ratio"] = seconds / found["sdpa_seconds"]
    return found


def time_ratios(layer: Layer, rounds: int) -> dict[str, float]:
    times = [(cpu_and_wall(lambda: sdpa(layer)), cpu_and_wall(lambda: matching(layer))) for _ in range(rounds)]
    ratios = np.median([[ours / theirs for theirs, ours in zip(*pair, strict=True)] for pair in times], axis=0)
    seconds = float(np.median([theirs[0] for theirs, _ in times]))
    return {"ratio_cpu": float(ratios[0]), "ratio_wall": float(ratios[1]), "sdpa_seconds": seconds}


def make_layer(length: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Layer:
    generator = torch.Generator(device).manual_seed(0)

    def normal(heads: int) -> Tensor:
        return torch.randn(1, heads, length, HEAD_SIZE, generator=generator, device=device, dtype=dtype)

    tokens_T = torch.arange(length, device=device)
    mixing_SH = torch.randn(HEADS, HEADS, generator=generator, device=device).softmax(-1)
    return Layer(
        q_BHTD=normal(HEADS).requires_grad_(),
        k_BKTD=normal(KEY_VALUE_HEADS).requires_grad_(),
        v_BKTD=normal(KEY_VALUE_HEADS).requires_grad_(),
        teacher=QueryKey(q_BHTD=normal(HEADS), k_BKTD=normal(KEY_VALUE_HEADS), scale=HEAD_SIZE**-0.5),
        mixing_SH=mixing_SH.requires_grad_(),
        places=Places(position_ids_3BT=tokens_T.expand(3, 1, -1), images_before_BT=(tokens_T // TOKENS_AN_IMAGE)[None]),
    )


def matching(layer: Layer, kernel: MatchingKernel = "auto", chunk_mib: int = MatchingConfig().chunk_mib) -> None:
    rows = rows_where(torch.ones(1, layer.q_BHTD.shape[2], dtype=torch.bool, device=layer.q_BHTD.device))
    loss = attention_matching(
        layer.student,
        layer.teacher,
        rows=rows,
        places=layer.places,
        tilt=TILT,
        mixing_SH=layer.mixing_SH,
        chunk_bytes=chunk_mib * 2**20,
        kernel=kernel,
    )
    backward(layer, loss)


def sdpa(layer: Layer) -> None:
    """As transformers calls it: key-value heads repeated, causal."""
    group = HEADS // KEY_VALUE_HEADS
    k_BHTD, v_BHTD = (x.repeat_interleave(group, dim=1) for x in (layer.k_BKTD, layer.v_BKTD))
    backward(layer, F.scaled_dot_product_attention(layer.q_BHTD, k_BHTD, v_BHTD, is_causal=True).sum())


def materialised(layer: Layer) -> None:
    """The formula with whole maps, by autograd."""
    length = layer.q_BHTD.shape[2]
    bias_TT = TILT.bias(layer.places, torch.arange(length)[None], length, torch.float32)[0]
    log_s = log_map(layer.student, bias_TT)
    p_BSTT = torch.einsum("sh,bhrt->bsrt", layer.mixing_SH, log_map(layer.teacher, bias_TT).exp())
    divergence = p_BSTT * (p_BSTT.clamp_min(1e-38).log() - log_s)
    backward(layer, divergence.sum() / (length * HEADS))


def log_map(model: QueryKey, bias_TT: Tensor) -> Tensor:
    k_BHTD = model.k_BKTD.repeat_interleave(HEADS // KEY_VALUE_HEADS, dim=1)
    return (model.q_BHTD @ k_BHTD.mT * model.scale + bias_TT).log_softmax(-1)


def backward(layer: Layer, loss: Tensor) -> None:
    for leaf in layer.leaves():
        leaf.grad = None
    loss.backward()


def cpu_and_wall(call: Callable[[], None]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak_bytes(call: Callable[[], None]) -> float:
    """Resident memory at its peak during the call, beyond that before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    call()
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
