"""Starts a program that ends when its parent does, however the parent ends.

    python -m server.engines.leash PARENT_PID program argument...

Linux only; elsewhere the program simply runs, and only an orderly end of the parent ends it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Asks the kernel for SIGTERM at the parent's death, then becomes the program."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            # The parent died before the kernel was asked.
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - becoming another program is the purpose


if __name__ == "__main__":
    main()
