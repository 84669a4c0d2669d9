"""`laid-serve` with the real engine and with keys, and the end of its engine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from server.engines.engine import free_port
from server.traffic.caller import Limits
from server.traffic.new_key import add_key
from soak_bench.load import MODEL, Keys

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "distill" / "miniature" / "checkpoints" / "base"
START_SECONDS = 600.0
LIMITED_PER_MINUTE = 30
# 100 images of this size take more tokens than the miniature was made for; what it answers does not matter here.
ENGINE_ARGUMENTS = ("--engine-arg=--max-model-len=16384",)
ENVIRONMENT = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running `laid-serve`."""

    url: str
    engine_url: str
    process: psutil.Process
    """Of the gateway; the engine is its grandchild, beneath its leash."""
    keys: Keys

    def kill_engine(self) -> None:
        """As the kernel does when memory is short: without a word."""
        (leash,) = self.process.children()
        (engine,) = leash.children()
        engine.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def running_stack(folder: Path, checkpoint: Path = CHECKPOINT, **settings: str) -> Iterator[Stack]:
    """Starts it, and ends it with Ctrl-C.

    Args:
        folder: for its log and its keys.
        checkpoint: one of the miniature ones.
        settings: `LAID_*` variables.
    """
    path = folder / "keys.toml"
    keys = Keys(
        usual=add_key(path, "usual", tenant=None, limits=Limits()),
        limited=add_key(path, "limited", tenant=None, limits=Limits(requests_per_minute=LIMITED_PER_MINUTE)),
    )
    port, engine_port = free_port(), free_port()
    command = [sys.executable, "-m", "server.cli", str(checkpoint), "--model", MODEL, "--port", str(port)]
    command += ["--engine-port", str(engine_port), *ENGINE_ARGUMENTS]
    environment = os.environ | ENVIRONMENT | {"LAID_KEYS_FILE": str(path)} | settings
    with (
        (folder / "laid-serve.log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, folder / "laid-serve.log")
            engine_url = f"http://127.0.0.1:{engine_port}"
            yield Stack(url=url, engine_url=engine_url, process=psutil.Process(process.pid), keys=keys)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{url}/ready").status_code == httpx.codes.OK:
                    return
            time.sleep(0.2)
    raise RuntimeError(f"laid-serve did not get ready:\n{log.read_text()[-3000:]}")
