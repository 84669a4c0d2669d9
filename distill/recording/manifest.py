"""The recording's manifest: what it was made from, and how far it reaches."""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from distill.recording.files import replace_durably
from distill.recording.needs import LayerNeed
from distill.signals import AttentionShape

MANIFEST_FILE = "manifest.json"
SignalDtype = Literal["float32", "bfloat16"]

_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class LogitRecord:
    """How the logits on the answer were recorded."""

    top_k: int | None
    """The likeliest tokens at `temperature` and the rest as one; None: every token's logit, as the teacher gave it."""
    temperature: float
    vocabulary_size: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of the data a finished recording holds."""

    steps: int
    """Training steps from the first one on whose samples are recorded."""
    is_every_sample: bool
    """Whether the data hold no other sample: then any order and number of steps can be trained."""
    samples: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that must agree between the recording and a training from it."""

    teacher: dict[str, Any]
    processor: dict[str, Any]
    data: dict[str, Any]
    layers: dict[int, LayerNeed]
    logits: LogitRecord | None
    dtype: SignalDtype
    """Of queries and keys."""
    attention: AttentionShape
    versions: dict[str, str]
    coverage: Coverage | None
    """None until all that was asked for is recorded."""

    def write(self, folder: Path) -> None:
        """Replaces the folder's manifest in one step."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"
        replace_durably(folder / MANIFEST_FILE, text.encode())


def read_manifest(folder: Path) -> Manifest:
    """Reads a folder's manifest.

    Raises:
        ValueError: there is none, or one of a format that this version does not know.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise ValueError(f"{folder}: no {MANIFEST_FILE}, expected a folder that `distill record` made")
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = values.pop("format", None)
    if found != _FORMAT:
        raise ValueError(f"{path}: format: {found!r}, expected {_FORMAT}; record again with this version")
    values["layers"] = {int(layer): LayerNeed(**need) for layer, need in values["layers"].items()}
    values["logits"] = values["logits"] and LogitRecord(**values["logits"])
    values["attention"] = AttentionShape(**values["attention"])
    values["coverage"] = values["coverage"] and Coverage(**values["coverage"])
    return Manifest(**values)


def refuse_other(folder: Path, found: Manifest, wanted: Manifest) -> None:
    """Makes sure that a recording can be gone on with.

    Raises:
        ValueError: it was begun under other settings or versions; the message names each.
    """
    plain = [json.loads(json.dumps(asdict(dataclasses.replace(each, coverage=None)))) for each in (found, wanted)]
    names = list(plain[0])
    phrases = [phrase for name in names for phrase in differences(plain[0][name], plain[1][name], name)]
    if phrases:
        raise ValueError(
            f"{folder}: begun under other settings, expected the same to go on, or a new folder: {'; '.join(phrases)}"
        )


def differences(recorded: Any, now: Any, key: str, free: Collection[str] = ()) -> list[str]:
    """What differs between two trees of plain values, one phrase for each leaf.

    Args:
        key: the trees' own dotted key, for the phrases.
        free: dotted keys that may differ.
    """
    if recorded == now or key in free:
        return []
    if isinstance(recorded, dict) and isinstance(now, dict):
        names = sorted(recorded.keys() | now.keys())
        parts = (differences(recorded.get(name), now.get(name), f"{key}.{name}", free) for name in names)
        return [phrase for part in parts for phrase in part]
    return [f"{key} was {_short(recorded)}, is {_short(now)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
