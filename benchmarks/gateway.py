"""What the gateway costs: added to an engine that answers at once, beside its peers; and on the real engine.

One gateway process with every check on: a key with all limits, counted in the process or, in a second gateway, in
Redis. Each round asks the engine directly, through the gateways and through each peer in turn, so that what slows the
machine for a while slows all. "Added" at p50 and p99 is the difference of the quantiles.
"""

import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from common import Row, describe_machine, parse_arguments, report
from gateway_bench import processes
from gateway_bench.bodies import file_part, image_part, make_body, make_images, make_turns
from gateway_bench.client import CHAT, Answer, Connection
from gateway_bench.fake_engine import MODEL
from gateway_bench.peers import install_peers
from gateway_bench.processes import ROOT, Server

MIB = 1024 * 1024
GATEWAY = "gateway"
GATEWAY_REDIS = "gateway, limits in Redis"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    text_rounds: int
    image_rounds: int
    load_seconds: float
    many: int
    """Images of the largest request."""
    together: int
    """Such requests at once."""
    has_peers: bool
    has_engine: bool


FULL = Size(text_rounds=1000, image_rounds=100, load_seconds=5, many=100, together=50, has_peers=True, has_engine=True)
QUICK = Size(text_rounds=20, image_rounds=3, load_seconds=0.5, many=8, together=4, has_peers=False, has_engine=False)


def main() -> None:
    arguments = parse_arguments(__doc__)
    size = QUICK if arguments.quick else FULL
    images = make_images(size.many)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder)
        engine = stack.enter_context(processes.fake_engine())
        servers = [engine, stack.enter_context(processes.gateway(engine, path))]
        storage = stack.enter_context(processes.redis())
        (path / "redis").mkdir()
        servers.append(
            stack.enter_context(
                processes.gateway(engine, path / "redis", name=GATEWAY_REDIS, LAID_LIMITS_STORAGE=storage)
            )
        )
        servers.append(stack.enter_context(processes.floor(engine)))
        versions = {}
        for name, python, start in install_peers() if size.has_peers else ():
            servers.append(stack.enter_context(start(engine, python, path)))
            versions[servers[-1].name] = name
        rows = added_rows(servers, images, size)
        rows += stream_rows(servers, size, path)
        rows += health_rows(servers, images, size)
        rows += cancel_rows(engine, servers[1])
    with tempfile.TemporaryDirectory() as folder, processes.fake_engine() as engine:
        rows += memory_rows(engine, images, size, Path(folder))
        rows += refusal_rows(engine, Path(folder))
    if size.has_engine:
        rows += engine_rows(images, size)
    machine = describe_machine(("laid", "fastapi", "uvicorn", "aiohttp"))
    report(machine | versions, rows, arguments.json)


def added_rows(servers: Sequence[Server], images: Sequence[bytes], size: Size) -> list[Row]:
    """Time added to the engine's own, for a text, for some images and for many."""
    targets = {"text": (1.0, 3.0), "20 images": (10.0, 20.0), "100 images": (45.0, 80.0)}
    cases = [("text", make_body([], model=MODEL), size.text_rounds)]
    for count in (min(20, size.many), size.many):
        cases.append((f"{count} images", make_body(list(images[:count]), model=MODEL), size.image_rounds))
    rows = []
    for title, body, rounds in cases:
        seconds = alternate(servers, body, rounds)
        for server in servers[1:]:
            for quantile, target in zip((0.5, 0.99), targets.get(title, (None, None)), strict=True):
                added = 1e3 * (quantile_of(seconds[server.name], quantile) - quantile_of(seconds["direct"], quantile))
                wanted = target if server.name == GATEWAY else None
                rows.append(at_most(f"{title}, {server.name}: added at p{100 * quantile:.0f}", added, "ms", wanted))
        direct = 1e3 * quantile_of(seconds["direct"], 0.5)
        rows.append(Row(name=f"{title}, {len(body)} bytes: direct at p50", value=direct, unit="ms"))
    return rows


def alternate(servers: Sequence[Server], body: bytes, rounds: int) -> dict[str, list[float]]:
    """Seconds of each answer by server; the first round is not counted."""
    seconds: dict[str, list[float]] = {server.name: [] for server in servers}
    with contextlib.ExitStack() as stack:
        connections = {server.name: stack.enter_context(connect(server)) for server in servers}
        tell_prompt_tokens(connections["direct"], connections[GATEWAY].post(body))
        for number in range(rounds + 1):
            for name, connection in connections.items():
                answer = checked(connection.post(body))
                if number:
                    seconds[name].append(answer.seconds)
    return seconds


def tell_prompt_tokens(engine: Connection, answer: Answer) -> None:
    """Lets the fake engine's usage be what the gateway counted, as the real engine's is."""
    tokens = int(checked(answer).headers["x-laid-prompt-tokens"])
    engine.post(json.dumps({"prompt_tokens": tokens}).encode(), "/control")


def stream_rows(servers: Sequence[Server], size: Size, folder: Path) -> list[Row]:
    """Streams answered in a second, from 1, 32 and 256 connections, and what each costs the server's first process."""
    body = folder / "stream.json"
    body.write_bytes(make_body([], model=MODEL, stream=True))
    with connect(servers[0]) as engine, connect(servers[1]) as through:
        tell_prompt_tokens(engine, through.post(body.read_bytes()))
    rows = []
    for connections, target in ((1, 1300.0), (32, 2700.0), (256, 2500.0)):
        for server in servers:
            command = [sys.executable, "-m", "gateway_bench.load", str(server.port), str(connections)]
            command += [str(size.load_seconds), str(body)]
            command += [f"{name}: {value}" for name, value in server.headers.items()]
            before = server.processor_seconds()
            rate, streams = map(float, subprocess.check_output(command, cwd=ROOT / "benchmarks", text=True).split())
            milliseconds = 1e3 * (server.processor_seconds() - before) / streams
            wanted = target if server.name == GATEWAY else None
            met = None if wanted is None else rate >= wanted
            name = f"streams at once: {connections}, {server.name}"
            rows.append(Row(name=name, value=rate, unit="streams a second", target=wanted, met=met))
            rows.append(Row(name=f"{name}: processor time of the server", value=milliseconds, unit="ms a stream"))
    return rows


def health_rows(servers: Sequence[Server], images: Sequence[bytes], size: Size) -> list[Row]:
    """`/health` while requests with many images come in, one after the other."""
    body = make_body(list(images), model=MODEL)
    rows = []
    for server in servers[1:]:
        with posting(server, body), connect(server) as connection:
            path = "/health/liveliness" if server.name == "LiteLLM" else "/health"
            seconds = []
            for _ in range(3 * size.image_rounds):
                seconds.append(checked(connection.get(path)).seconds)
                time.sleep(0.01)
        p99 = 1e3 * quantile_of(seconds, 0.99)
        wanted = 15.0 if server.name == GATEWAY else None
        rows.append(at_most(f"/health while {size.many} images come in, {server.name}: p99", p99, "ms", wanted))
    return rows


@contextlib.contextmanager
def posting(server: Server, body: bytes) -> Iterator[None]:
    """Posts the body again and again from a thread."""
    stop = threading.Event()

    def post() -> None:
        with connect(server) as connection:
            while not stop.is_set():
                checked(connection.post(body))

    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(post)
        try:
            yield
        finally:
            stop.set()
            posted.result()


def cancel_rows(engine: Server, gateway: Server, repeats: int = 20) -> list[Row]:
    """From a client's leaving to its request's end in the engine."""
    rows = []
    with connect(engine) as control:

        def tell(**wanted: bool) -> dict[str, list[float]]:
            return dict(checked(control.post(json.dumps(wanted).encode(), "/control")).json())

        for title, stream in (("streaming", True), ("not streaming", False)):
            body = make_body([], model=MODEL, stream=stream)
            tell(hold=True)
            delays = []
            for _ in range(repeats):
                client = connect(gateway)
                client.socket.sendall(client.head("POST", CHAT, f"content-length: {len(body)}") + body)
                while not tell()["waiting"]:
                    time.sleep(0.001)
                before = len(tell()["left"])
                left = time.monotonic()
                client.close()
                while len(tell()["left"]) == before:
                    time.sleep(0.001)
                delays.append(1e3 * (tell()["left"][-1] - left))
            tell(hold=False)
            rows.append(at_most(f"cancel after a client leaves, {title}: slowest", max(delays), "ms", 50.0))
    return rows


def memory_rows(engine: Server, images: Sequence[bytes], size: Size, folder: Path) -> list[Row]:
    """The peak of one large body in a fresh gateway, and of many at once."""
    body = make_body(list(images), model=MODEL)
    with processes.gateway(engine, folder) as gateway, connect(gateway) as connection:
        checked(connection.post(make_body([], model=MODEL)))
        idle = gateway.resident_bytes()
        gateway.forget_peak()
        checked(connection.post(body))
        peak = gateway.peak_bytes() - idle
        rows = [at_most(f"memory over idle for {size.many} images", peak / len(body), "bodies", 1.5)]
        rows.append(Row(name="the same", value=peak / MIB, unit="MiB"))
        gateway.forget_peak()
        statuses = together(gateway, body, size.together)
        total = gateway.peak_bytes() - idle
        rows.append(Row(name=f"memory over idle for {size.together} such requests", value=total / MIB, unit="MiB"))
        rows.append(Row(name="of them answered", value=statuses.count(200), unit="requests"))
        refused = sum(statuses.count(status) for status in (429, 503))
        rows.append(Row(name="of them refused with 429 or 503", value=refused, unit="requests"))
        lost = float(size.together - statuses.count(200) - refused)
        rows.append(at_most("of them lost", lost, "requests", 0.0))
    return rows


def together(server: Server, body: bytes, count: int) -> list[int]:
    """The statuses of many requests at once; 0 where there was no answer."""

    def post(_: int) -> int:
        try:
            with connect(server) as connection:
                return connection.post(body).status
        except OSError:
            return 0

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(post, range(count)))


def refusal_rows(engine: Server, folder: Path, repeats: int = 10) -> list[Row]:
    """From the byte that crosses a limit to the answer's first."""
    limit = 4 * MIB
    many = make_body([b""] * 3, model=MODEL)
    with processes.gateway(engine, folder, LAID_MAX_BODY_BYTES=str(limit), LAID_MAX_IMAGES="2") as gateway:
        cases: list[tuple[str, Callable[[], Answer], int]] = [
            ("announced body too large", lambda: announced(gateway, limit + 1), 413),
            ("body too large, in chunks", lambda: chunked(gateway, limit), 413),
            ("too many images", lambda: _post(gateway, many), 400),
        ]
        rows = []
        for title, ask, status in cases:
            answers = [ask() for _ in range(repeats)]
            assert {answer.status for answer in answers} == {status}, (title, answers)
            slowest = 1e3 * statistics.median(answer.seconds for answer in answers)
            rows.append(at_most(f"refusal, {title}: p50", slowest, "ms", 5.0))
    return rows


def announced(server: Server, num_bytes: int) -> Answer:
    with connect(server) as connection:
        started = time.perf_counter()
        connection.socket.sendall(connection.head("POST", CHAT, f"content-length: {num_bytes}"))
        return connection.read(started)


def chunked(server: Server, limit: int) -> Answer:
    """All that is allowed, then, once it has been read, one byte more."""
    with connect(server) as connection:
        connection.socket.sendall(connection.head("POST", CHAT, "transfer-encoding: chunked"))
        connection.socket.sendall(b"%x\r\n%s\r\n" % (limit, b" " * limit))
        time.sleep(0.5)
        started = time.perf_counter()
        connection.socket.sendall(b"1\r\n \r\n")
        return connection.read(started)


def engine_rows(images: Sequence[bytes], size: Size) -> list[Row]:
    """A conversation with many images on the real engine: its second turn beside the engine asked directly."""
    with tempfile.TemporaryDirectory() as folder, processes.served_engine(Path(folder)) as (engine, gateway):
        parts = [image_part(image) for image in images]
        by_id = [file_part(file_id) for file_id in upload(gateway, images)]
        with connect(engine) as direct, connect(gateway) as through:
            asks: dict[str, Callable[[str], Answer]] = {
                "direct": lambda text: direct.post(make_turns(parts, model=MODEL, text=text)),
                "bytes sent again": lambda text: through.post(make_turns(parts, model=MODEL, text=text)),
                "uploaded files' ids": lambda text: through.post(make_turns(by_id, model=MODEL, text=text)),
            }
            seconds: dict[str, list[float]] = {name: [] for name in asks}
            for number in range(size.image_rounds // 4 + 1):
                for name, ask in asks.items():
                    answer = checked(ask(f"What is in image {number}?"))
                    if number:
                        seconds[name].append(answer.seconds)
    title = f"real engine, second turn with {len(images)} images"
    middle = {name: quantile_of(values, 0.5) for name, values in seconds.items()}
    rows = [Row(name=f"{title}, direct: p50", value=1e3 * middle["direct"], unit="ms")]
    for name, target in (("bytes sent again", 0.35), ("uploaded files' ids", 0.2)):
        rows.append(at_most(f"{title}, {name}: p50", middle[name] / middle["direct"], "of direct", target))
    return rows


def upload(server: Server, images: Sequence[bytes]) -> list[str]:
    """The ids under which the gateway keeps the images."""
    base_url = f"http://127.0.0.1:{server.port}"
    with httpx.Client(base_url=base_url, headers=server.headers, timeout=600, trust_env=False) as client:
        return [
            client.post("/v1/files", files={"file": (f"{i}.jpg", image, "image/jpeg")}, data={"purpose": "vision"})
            .raise_for_status()
            .json()["id"]
            for i, image in enumerate(images)
        ]


def quantile_of(values: Sequence[float], quantile: float) -> float:
    """The smallest value that at least this share does not exceed."""
    return sorted(values)[math.ceil(quantile * len(values)) - 1]


def at_most(name: str, value: float, unit: str, target: float | None) -> Row:
    return Row(name=name, value=value, unit=unit, target=target, met=None if target is None else value <= target)


def connect(server: Server) -> Connection:
    """A connection that sends what the server's clients must."""
    return Connection(server.port, server.headers)


def checked(answer: Answer) -> Answer:
    assert answer.status == 200, (answer.status, answer.body[:500])
    return answer


def _post(server: Server, body: bytes) -> Answer:
    with connect(server) as connection:
        return connection.post(body)


if __name__ == "__main__":
    main()
