"""What the whole suite shares: `make serve` as a user runs it."""

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psutil
import pytest

from distill.reproducible import ask_for_the_same_bits
from rope_gain import wheel_guard

# Before any test module imports transformers, or multiplies.
wheel_guard.install()
ask_for_the_same_bits()

# The same examples on every machine and at every run.
hypothesis.settings.register_profile("laid", derandomize=True, database=None)
hypothesis.settings.load_profile("laid")

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running `make serve`."""

    base_url: str
    """Ends in /v1."""
    model: str
    output: str
    """What it printed until it was ready."""

    @property
    def root_url(self) -> str:
        return self.base_url.removesuffix("/v1")


@pytest.fixture(scope="session")
def make_serve() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """`with make_serve("MODEL=folder") as served:` ends it with Ctrl-C and sees that nothing is left behind."""
    return _make_serve


@contextlib.contextmanager
def _make_serve(*variables: str, limit_seconds: float = 900) -> Iterator[Served]:
    command = ["make", "--no-print-directory", "serve", f"PORT={_free_port()}", *variables]
    # A session of its own stands for a terminal: Ctrl-C reaches every process in it.
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output = _read_until_ready(process, limit_seconds)
            found = re.search(r"Base URL: (\S+)   model: (\S+)", output)
            assert found, output
            yield Served(base_url=found[1], model=found[2], output=output)
            family = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=120)
            _, alive = psutil.wait_procs(family, timeout=60)
            assert not alive, f"left behind: {alive}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _read_until_ready(process: "subprocess.Popen[str]", limit_seconds: float) -> str:
    """Everything printed up to the last line of the welcome; keeps reading afterwards so that no pipe fills."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    output, deadline = "", time.monotonic() + limit_seconds
    while "Ctrl-C ends it." not in output:
        line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        assert line is not None, f"make serve ended early:\n{output}"
        output += line
    return output


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
