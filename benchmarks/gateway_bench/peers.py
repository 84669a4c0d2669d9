"""The gateway's peers, each installed in an environment of its own."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from gateway_bench.processes import ROOT, Server, litellm, sglang_router, vllm_router

FOLDER = ROOT / "runs" / "bench" / "peers"
Start = Callable[[Server, Path, Path], AbstractContextManager[Server]]
PEERS: tuple[tuple[str, str, Start], ...] = (
    ("litellm[proxy]", "litellm", litellm),
    ("vllm-router", "vllm-router", vllm_router),
    ("sglang-router", "sglang-router", sglang_router),
)


def install_peers() -> list[tuple[str, Path, Start]]:
    """Name with version, Python and starter of each peer that could be installed; says which could not."""
    found = []
    for requirement, package, start in PEERS:
        python = FOLDER / package / "bin" / "python"
        with contextlib.suppress(subprocess.CalledProcessError):
            if not python.exists():
                print(f"installing {requirement} ...", flush=True)
                subprocess.run([sys.executable, "-m", "venv", str(FOLDER / package)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement], check=True)
            version = f"import importlib.metadata as m; print(m.version({package!r}))"
            number = subprocess.check_output([str(python), "-c", version], text=True).strip()
            found.append((f"{package} {number}", python, start))
            continue
        print(f"{requirement} could not be installed: left out", flush=True)
    return found
