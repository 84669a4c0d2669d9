"""Runs a program that ends when its parent does, however the parent ends, with every process that it has started.

    python -m server.engines.leash PARENT_PID program argument...

Started as the leader of a process group. It stays beside the program: a vLLM that is told to end while it starts leaves
processes behind that nobody else would end. Linux only; elsewhere only an orderly end of the parent ends the program.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
# For an engine to end by itself after its parent's death; nobody waits for it.
GRACE_SECONDS = 10.0


class ParentEndedError(Exception):
    """There is nobody left to run the program for."""


def main() -> int:
    """Runs the program to its end and returns its status, 128 + N after signal N as in a shell."""
    parent = int(sys.argv[1])

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        # From the kernel, at the parent's death; from the parent it comes to the whole group, the program included.
        if os.getppid() != parent:
            raise ParentEndedError

    signal.signal(signal.SIGTERM, on_sigterm)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1  # it died before the kernel was asked
    program = None
    try:
        program = subprocess.Popen(sys.argv[2:])
        status = program.wait()
    except ParentEndedError:
        _end_group(program)
        return 1
    return status if status >= 0 else 128 - status


def _end_group(program: "subprocess.Popen[bytes] | None") -> None:
    """SIGTERM, and SIGKILL for what is left after a grace, this process included."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    group = os.getpgrp()
    os.killpg(group, signal.SIGTERM)
    if program is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(GRACE_SECONDS)
    os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
