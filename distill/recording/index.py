"""The recording's list of shards: one line of JSON for each training step, only ever added to."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.recording.content import SampleContent
from distill.recording.files import append_durably, file_sha256

INDEX_FILE = "shards.jsonl"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What was recorded at one step."""

    step: int
    num_samples: int
    """Samples of the step, those recorded before included."""
    num_bytes: int
    sha256: str
    """Empty if every sample of the step had been recorded before: then there is no file."""
    names: tuple[str, ...]
    contents: tuple[SampleContent, ...]
    """Of the samples in the file, in their order there."""

    @property
    def file_name(self) -> str:
        """Where its tensors lie."""
        return shard_file_name(self.step)

    def fault(self, folder: Path, *, is_thorough: bool) -> str | None:
        """What is wrong with the file: its size, and if thorough its checksum; None if nothing is."""
        if not self.contents:
            return None
        path = folder / self.file_name
        if not path.exists():
            return f"{path}: missing"
        size = path.stat().st_size
        if size != self.num_bytes:
            return f"{path}: {size} bytes, expected {self.num_bytes}"
        if is_thorough and file_sha256(path) != self.sha256:
            return f"{path}: another SHA-256 than in {INDEX_FILE}"
        return None

    def line(self) -> bytes:
        """The shard's line in the index."""
        return (json.dumps(asdict(self), ensure_ascii=False) + "\n").encode()


def shard_file_name(step: int) -> str:
    """The name of a step's file."""
    return f"step-{step:08}.safetensors"


def read_index(folder: Path) -> list[Shard]:
    """All shards, in the order of their recording; a last line that a kill cut off is left out."""
    path = folder / INDEX_FILE
    if not path.exists():
        return []
    content = path.read_bytes()
    return [_shard(json.loads(line)) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def append_shard(folder: Path, shard: Shard) -> None:
    """Adds a shard whose file is complete and durable."""
    append_durably(folder / INDEX_FILE, shard.line())


def _shard(values: dict[str, Any]) -> Shard:
    contents = tuple(SampleContent(**content) for content in values.pop("contents"))
    return Shard(names=tuple(values.pop("names")), contents=contents, **values)
