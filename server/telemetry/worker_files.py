"""Where several worker processes put their metrics so that each can show the sum of all.

prometheus-client looks at the same variable when it is imported; all here follows its multi-process mode:
https://prometheus.github.io/client_python/multiprocess/
"""

import os
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class WorkerFiles:
    """The folder of one gateway's workers."""

    def __init__(self, path: Path) -> None:
        """Makes the folder, and forgets the gauges of an earlier process with this one's id."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        mark_process_dead(os.getpid(), str(path))  # type: ignore[no-untyped-call]

    def forget_dead(self) -> None:
        """Removes the gauges of workers that have ended, however they did; their counters stay in the sums."""
        for pid in {int(file.stem.rpartition("_")[2]) for file in self.path.glob("gauge_live*.db")}:
            if not Path(f"/proc/{pid}").exists():
                mark_process_dead(pid, str(self.path))  # type: ignore[no-untyped-call]


def worker_files(environment: Mapping[str, str]) -> WorkerFiles | None:
    """The folder that the environment names; None where this process is the only one."""
    path = environment.get(VARIABLE)
    return None if path is None else WorkerFiles(Path(path))
