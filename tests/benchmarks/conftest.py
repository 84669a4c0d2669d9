"""The benchmarks' parts import each other from their own folder."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module as a benchmark does, such as `soak_bench.client`."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module
