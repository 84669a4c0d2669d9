from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from distill.config import load_config


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate: {self.rate}, expected at least 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    shape: Literal["line", "stairs"] = "line"
    verbose: bool = False
    inner: Inner = Inner()
    extra: Inner | None = None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def test_values_defaults_and_blocks(path: Path) -> None:
    path.write_text("steps: 3\nverbose: yes\nextra:\n  rate: 1e-4\n  names: [a, b]\n")
    assert load_config(Outer, path) == Outer(steps=3, verbose=True, extra=Inner(rate=1e-4, names=("a", "b")))


def test_null_leaves_an_optional_block_out(path: Path) -> None:
    path.write_text("steps: 3\nextra: null\n")
    assert load_config(Outer, path).extra is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 3\n", r"settings.yaml:1: step: unknown key; did you mean 'steps'\?"),
        ("steps: 3\ninner:\n  rats: 1\n", r"settings.yaml:3: inner.rats: unknown key; did you mean 'rate'\?"),
        ("steps: 3\nzzz: 1\n", r"settings.yaml:2: zzz: unknown key; known keys: steps, shape"),
        ("shape: line\n", r"settings.yaml:1: steps: missing"),
        ("steps: three\n", r"settings.yaml:1: steps: 'three', expected a whole number"),
        ("steps: 3.5\n", r"steps: '3.5', expected a whole number"),
        ("steps: [3]\n", r"steps: a list or block, expected a single value"),
        ("steps: 3\nshape: curve\n", r"settings.yaml:2: shape: 'curve', expected one of line, stairs"),
        ("steps: 3\nverbose: 1\n", r"verbose: '1', expected true or false"),
        ("steps: 3\ninner: 5\n", r"inner: '5', expected a block of keys and values"),
        ("steps: 3\ninner: {names: a}\n", r"inner.names: 'a', expected a list"),
        ("steps: 3\ninner:\n  rate: -1\n", r"settings.yaml:3: inner.rate: -1.0, expected at least 0"),
        ("steps: 3\nsteps: 4\n", r"settings.yaml:2: steps: given twice"),
        ("- steps\n", r"expected keys and values at the top"),
        ("steps: [3\n", r"settings.yaml: not valid YAML"),
    ],
)
def test_errors_name_the_line_the_key_and_the_expectation(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(Outer, path)


def test_overrides_replace_and_add(path: Path) -> None:
    path.write_text("steps: 3\ninner: {rate: 2, names: [a]}\n")
    config = load_config(Outer, path, ["steps=5", "inner.rate=0.25", "extra.names=[x, y]", "shape=stairs"])
    assert config == Outer(steps=5, shape="stairs", inner=Inner(rate=0.25, names=("a",)), extra=Inner(names=("x", "y")))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.rat=1", r"command line: inner.rat: unknown key; did you mean 'rate'\?"),
        ("steps=many", r"command line: steps: 'many', expected a whole number"),
        ("steps", r"command line: 'steps', expected key=value"),
        ("steps=[", r"command line: not valid YAML"),
    ],
)
def test_override_errors_say_command_line(path: Path, override: str, message: str) -> None:
    path.write_text("steps: 3\n")
    with pytest.raises(ValueError, match=message):
        load_config(Outer, path, [override])
