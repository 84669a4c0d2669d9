"""What the benchmarks share: their arguments, paired ratios with an interval, the table and the JSON file."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BOOTSTRAP_RESAMPLES = 4000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    name: str
    value: float
    unit: str
    target: float | None = None
    """What `value` has to reach, or may not exceed; None where the figure only informs."""
    met: bool | None = None
    low: float | None = None
    """Lower end of the median's 95 % bootstrap interval, where `value` is a median."""
    high: float | None = None


def parse_arguments(description: str | None) -> argparse.Namespace:
    """`--quick` and `--json FILE`, which every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the machine and the rows here")
    return parser.parse_args()


def paired_ratios(baseline: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Throughput of `measured` over that of `baseline`, round by round.

    Args:
        baseline: seconds of each round.
        measured: seconds of the same rounds; a round's two times are neighbours, so that what slows the machine
            for a while slows both.
    """
    return [ours / theirs for ours, theirs in zip(baseline, measured, strict=True)]


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the median."""
    sample = np.asarray(values)
    draws = np.random.default_rng(seed).integers(len(sample), size=(BOOTSTRAP_RESAMPLES, len(sample)))
    low, high = np.percentile(np.median(sample[draws], axis=1), [2.5, 97.5])
    return float(low), float(high)


def ratio_row(name: str, ratios: Sequence[float], target: float | None = None) -> Row:
    """The median of throughput ratios; the target is met if the median reaches it."""
    median = float(np.median(ratios))
    low, high = bootstrap_interval(ratios)
    met = None if target is None else median >= target
    return Row(name=name, value=median, unit="of stock's throughput", target=target, met=met, low=low, high=high)


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where and when the figures were taken, and with which versions of `packages`."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average_at_end": os.getloadavg(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def report(machine: dict[str, Any], rows: Sequence[Row], path: Path | None) -> None:
    """Prints the table, and writes `{"machine", "rows"}` to `path` if there is one."""
    print("\n" + "\n".join(f"{key}: {value}" for key, value in machine.items()) + "\n")
    width = max(len(row.name) for row in rows)
    print(f"{'name':{width}}  {'value':>9}  {'95 % interval':>17}  {'target':>7}  met  unit")
    for row in rows:
        interval = "" if row.low is None else f"{row.low:.4f} - {row.high:.4f}"
        target = "" if row.target is None else f"{row.target:g}"
        met = {None: "", True: "yes", False: "NO"}[row.met]
        print(f"{row.name:{width}}  {row.value:>9.5g}  {interval:>17}  {target:>7}  {met:3}  {row.unit}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
        path.write_text(json.dumps(content, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
