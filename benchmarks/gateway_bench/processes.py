"""Starts what is measured: the fake engine, the gateway, its peers; each ends with the benchmark."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from gateway_bench.fake_engine import MODEL
from server.traffic.keys import hash_key, new_key

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "distill" / "miniature" / "checkpoints" / "base"
START_SECONDS = 300
_HELLO = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}).encode()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running process that speaks HTTP on loopback."""

    name: str
    port: int
    pid: int
    headers: dict[str, str] = field(default_factory=dict)
    """That a client must send."""

    def processor_seconds(self) -> float:
        """Of the process alone, since its start."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """Since the start, or the last `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, key: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise LookupError(key)


@contextlib.contextmanager
def fake_engine() -> Iterator[Server]:
    """The engine that answers at once."""
    port = free_port()
    command = [sys.executable, "-m", "gateway_bench.fake_engine", str(port)]
    with _running("direct", command, port, cwd=ROOT / "benchmarks") as server:
        yield server


@contextlib.contextmanager
def floor(upstream: Server) -> Iterator[Server]:
    """A server in Python that passes everything on."""
    port = free_port()
    command = [sys.executable, "-m", "gateway_bench.floor", str(port), str(upstream.port)]
    environment = {"PYTHONPATH": str(ROOT)}
    with _running("floor", command, port, cwd=ROOT / "benchmarks", environment=environment) as server:
        yield server


@contextlib.contextmanager
def gateway(upstream: Server, folder: Path, *, name: str = "gateway", **settings: str) -> Iterator[Server]:
    """One `laid-serve` process with every check of a request on: a key, and all limits that a key can have.

    Args:
        folder: for its log and its keys.
        name: in the table.
        settings: `LAID_*` variables.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", "server.cli", str(CHECKPOINT)),
        *("--upstream", f"http://127.0.0.1:{upstream.port}", "--port", str(port)),
    ]
    headers, environment = _key(folder)
    with _running(
        name, command, port, environment=environment | settings, headers=headers, log=folder / f"{name}.log"
    ) as server:
        yield server


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis that keeps nothing on disk."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not installed; on Debian: apt-get install redis-server")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def _key(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The header that a client of the gateway sends, and the variables that tell the gateway of it.

    The limits are checked and counted at every request, and none is ever reached.
    """
    key, path = new_key(), folder / "keys.toml"
    limits = "".join(
        f"{name} = 1_000_000_000\n"
        for name in ("requests_per_minute", "tokens_per_minute", "images_per_minute", "concurrency")
    )
    path.write_text(f'[keys.bench]\nsha256 = "{hash_key(key)}"\n{limits}')
    return {"authorization": f"Bearer {key}"}, {"LAID_KEYS_FILE": str(path)}


@contextlib.contextmanager
def served_engine(folder: Path) -> Iterator[tuple[Server, Server]]:
    """`laid-serve` as a user starts it: the real engine, and the gateway in front of it."""
    port, engine_port = free_port(), free_port()
    command = [sys.executable, "-m", "server.cli", str(CHECKPOINT), "--port", str(port), "--model", MODEL]
    # 100 large images take more tokens than the miniature was made for; what it answers does not matter here.
    command += ["--engine-port", str(engine_port), "--engine-arg=--max-model-len=16384"]
    headers, environment = _key(folder)
    environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    with _running(
        "gateway", command, port, environment=environment, headers=headers, log=folder / "laid-serve.log"
    ) as server:
        yield Server(name="direct", port=engine_port, pid=server.pid), server


@contextlib.contextmanager
def litellm(upstream: Server, python: Path, folder: Path) -> Iterator[Server]:
    """LiteLLM's proxy with one worker."""
    port = free_port()
    entry = {
        "model_name": MODEL,
        "litellm_params": {
            "model": f"openai/{MODEL}",
            "api_base": f"http://127.0.0.1:{upstream.port}/v1",
            "api_key": "none",
        },
    }
    config = folder / "litellm.json"
    config.write_text(json.dumps({"model_list": [entry], "litellm_settings": {"num_retries": 0}}))
    command = [str(python.with_name("litellm")), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    environment = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # It asks for keys otherwise; without a database it could know only the master key.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with _running(
        "LiteLLM",
        command,
        port,
        environment=environment,
        log=folder / "litellm.log",
        path="/health/liveliness",
        waits_for_answer=True,
    ) as server:
        yield server


def vllm_router(upstream: Server, python: Path, folder: Path) -> AbstractContextManager[Server]:
    """vLLM's own router."""
    return _router("vllm-router", upstream, python, folder)


def sglang_router(upstream: Server, python: Path, folder: Path) -> AbstractContextManager[Server]:
    """SGLang's router."""
    return _router("sglang-router", upstream, python, folder, "launch")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _router(name: str, upstream: Server, python: Path, folder: Path, *verb: str) -> Iterator[Server]:
    """A program of this name beside its Python; both routers take the same options."""
    port = free_port()
    command = [
        *(str(python.with_name(name)), *verb, "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"http://127.0.0.1:{upstream.port}", "--prometheus-port", str(free_port())),
    ]
    with _running(name, command, port, log=folder / f"{name}.log", waits_for_answer=True) as server:
        yield server


@contextlib.contextmanager
def _running(
    name: str,
    command: Sequence[str],
    port: int,
    *,
    environment: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    cwd: Path = ROOT,
    log: Path | None = None,
    path: str = "/health",
    waits_for_answer: bool = False,
) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log is not None else subprocess.DEVNULL
        process = stack.enter_context(
            subprocess.Popen(command, cwd=cwd, env=os.environ | (environment or {}), stdout=output, stderr=output)
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}{path}", log)
            if waits_for_answer:
                _wait(process, f"http://127.0.0.1:{port}/v1/chat/completions", log, body=_HELLO)
            yield Server(name=name, port=port, pid=process.pid, headers=headers or {})
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path | None, body: bytes | None = None) -> None:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310 - on loopback
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - on loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} did not start" + (f", see {log}" if log else ""))
