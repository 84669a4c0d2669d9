"""Run by test_record.py: `distill record` in child processes that are killed at random moments, and then in one that is
not. Prints how many steps were recorded at each kill."""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from distill.recording.index import INDEX_FILE, read_index
from rope_gain import wheel_guard

NUM_KILLS = 5
NUM_STEPS = 40
_MOST_STEPS_BETWEEN = 4
_POLL_SECONDS = 0.001


def files(folder: Path) -> dict[str, str]:
    """Everything in a recording, by hashes: nobody waits for the difference of two long files to be shown."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def record(arguments: list[str]) -> int:
    """Starts `distill record` in a child of this process, which has imported everything already."""
    child = os.fork()
    if child == 0:
        from distill.cli import main

        os._exit(main(["record", *arguments]))
    return child


def kill_at_random(child: int, folder: Path, rng: random.Random) -> int | None:
    """Kills the child when it has recorded some more steps, wherever it is then; returns how many steps there are, None
    if the child had ended before."""
    enough = _num_steps(folder) + rng.randint(1, _MOST_STEPS_BETWEEN)
    while _num_steps(folder) < enough:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return None
        time.sleep(_POLL_SECONDS)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return len(read_index(folder)) if os.WIFSIGNALED(status) else None


def main() -> None:
    """Arguments: a seed for the moments, then those of `distill record`, the folder second."""
    wheel_guard.install()
    import distill.recording.recorder  # noqa: F401  # before the first fork

    rng, arguments = random.Random(sys.argv[1]), sys.argv[2:]
    folder = Path(arguments[1])
    kills = []
    while len(kills) < NUM_KILLS and (steps := kill_at_random(record(arguments), folder, rng)) is not None:
        kills.append(steps)
    _, status = os.waitpid(record(arguments), 0)
    assert status == 0
    print(json.dumps(kills))


def _num_steps(folder: Path) -> int:
    path = folder / INDEX_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    main()
