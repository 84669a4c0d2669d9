"""`distill` commands as processes, several at a time, each with its output in a file."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

_LOG_LINES = 20


class StepError(RuntimeError):
    """A command failed, or was stopped; the message holds the end of what it printed."""


class Steps:
    """Runs commands for the threads that ask; what is stopped goes on from there the next time it is run."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False
        self._lock = threading.Lock()

    def run(self, log: Path, *arguments: object) -> None:
        """Runs one command to its end; its output is added to the file `log`.

        Raises:
            StepError: it failed, or all were stopped.
        """
        command = [sys.executable, "-m", "distill", *map(str, arguments)]
        with self._lock:
            if self._is_stopped:
                raise StepError("stopped")
            process = _start(command, log)
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.remove(process)
        if status != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise StepError("\n".join([*lines[-_LOG_LINES:], f"exit status {status}; all of its output: {log}"]))

    def stop(self) -> None:
        """Interrupts the commands that run, and lets no other begin."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


def _start(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            # Models this small are fastest on one thread, and several run at a time.
            env={"OMP_NUM_THREADS": "1", **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A session of its own: Ctrl-C reaches the parent alone, which then stops them all.
            start_new_session=True,
        )
