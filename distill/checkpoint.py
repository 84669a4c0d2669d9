"""The checkpoint folder: laid.json, and writing a folder that is whole or not there."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rope_gain.layout import read_config

LAID_FILE = "laid.json"

_FORMAT = 1

# What `make serve` runs: its gateway counts these models' image tokens.
_GATEWAY_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def laid_record(
    kind: Literal["teacher", "base", "student"],
    *,
    recipe: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What laid.json says of a new checkpoint; its effective window is null until `distill evaluate` measures it.

    Args:
        recipe: the whole recipe as plain values.
        teacher: "path" and "sha256" of the teacher.
        training: "steps", "processes", "seconds" and "losses".
    """
    return {
        "format": _FORMAT,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("laid", "torch", "transformers")},
        "recipe": recipe,
        "teacher": teacher,
        "training": training,
        "effective_window": None,
    }


def serve_command(folder: Path) -> str:
    """What serves the checkpoint: the gateway, or the engine alone where the gateway does not know the family."""
    is_known = read_config(folder)["model_type"] in _GATEWAY_TYPES
    return f"make serve MODEL={folder}" if is_known else f"vllm serve {folder}"


def read_laid(folder: Path) -> dict[str, Any] | None:
    """The contents of laid.json, or None in a folder without one.

    Raises:
        ValueError: the file is of a format this version does not know.
    """
    path = folder / LAID_FILE
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != _FORMAT:
        raise ValueError(f"{path}: format: {record.get('format')!r}, expected {_FORMAT}")
    return record


def write_laid(folder: Path, record: dict[str, Any]) -> None:
    """Writes laid.json, replacing an old one in one step."""
    partial = folder / f".{LAID_FILE}.partial"
    partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / LAID_FILE)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Gives an empty folder beside `target` to write into and renames it at the end.

    After an error or a crash there is no `target`, so a folder of that name is always complete.

    Raises:
        ValueError: `target` exists.
    """
    if target.exists():
        raise ValueError(f"{target}: exists, expected a new folder")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def weights_sha256(folder: Path) -> str | None:
    """Digest of a checkpoint's weight files, in the order of their names; None if `folder` has none (a Hub name)."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
