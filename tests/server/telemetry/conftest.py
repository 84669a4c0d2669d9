"""Prometheus' own programs."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.system import need_program


@pytest.fixture(scope="session")
def promtool() -> Callable[..., str]:
    """Runs promtool and returns what it printed; it must have nothing against its input."""
    program = need_program("promtool", package="prometheus")

    def run(*arguments: Any, stdin: str = "") -> str:
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
