"""What the gateway's process holds, over time."""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

import psutil


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """At one moment."""

    resident_bytes: int
    sockets: int
    descriptors: int
    threads: int


def look(process: psutil.Process) -> Vitals:
    """Of the process alone, without its children."""
    with process.oneshot():
        return Vitals(
            resident_bytes=process.memory_info().rss,
            sockets=len(process.net_connections("all")),
            descriptors=process.num_fds(),
            threads=process.num_threads(),
        )


async def watch(process: psutil.Process, every_seconds: float, samples: list[Vitals], is_down: asyncio.Event) -> None:
    """Looks until cancelled, but not while the engine is down, when fewer requests are under way."""
    while True:
        if not is_down.is_set():
            samples.append(look(process))
        await asyncio.sleep(every_seconds)


async def at_rest(process: psutil.Process, seconds: float = 10.0) -> Vitals:
    """With nobody asking: the least of everything in this time, in which idle connections are closed."""
    samples = []
    for _ in range(int(seconds)):
        samples.append(look(process))
        await asyncio.sleep(1)
    least = {field.name: min(getattr(sample, field.name) for sample in samples) for field in fields(Vitals)}
    return Vitals(**least)


def thirds(samples: Sequence[Vitals], name: str) -> tuple[float, float]:
    """The median of one of the values over the first third of the time, and over the last."""
    third = len(samples) // 3
    if third == 0:
        raise ValueError(f"{len(samples)} samples, expected 3 or more")
    first, last = ([getattr(sample, name) for sample in part] for part in (samples[:third], samples[-third:]))
    return statistics.median(first), statistics.median(last)
