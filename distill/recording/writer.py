"""Writes a recording step by step, and takes it up again wherever it was killed."""

import dataclasses
import fcntl
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from safetensors.torch import save
from torch import Tensor

from distill.recording.content import SampleContent
from distill.recording.files import PARTIAL_SUFFIX, replace_durably
from distill.recording.index import INDEX_FILE, Shard, append_shard, read_index, shard_file_name
from distill.recording.manifest import MANIFEST_FILE, Coverage, Manifest, read_manifest, refuse_other

_LOCK_FILE = ".lock"


class RecordingWriter:
    """A recording that is being made; a context, during which no other process can write to the folder.

    A step's file is complete and durable under its name before its line is added to the index; the index alone says
    what is recorded. A kill at any moment leaves at most a file without a line, or half a line, and the step is then
    recorded again.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, is_thorough: bool = False) -> None:
        """Begins a recording, or takes up the one that is there.

        Args:
            is_thorough: compares the checksum of every shard that is there, and not only its size. Shards found
                wrong are forgotten, so that their steps are recorded again.

        Raises:
            ValueError: the folder holds something else, a recording of something else, or is being written to.
        """
        self._folder = folder
        self._is_thorough = is_thorough
        self._manifest = manifest
        self._shards: list[Shard] = []
        self._keys: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._lock(stack)
            self._open()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def steps(self) -> frozenset[int]:
        """Steps that are recorded."""
        return frozenset(shard.step for shard in self._shards)

    @property
    def num_samples(self) -> int:
        """Samples of the recorded steps, those counted twice that come in two steps."""
        return sum(shard.num_samples for shard in self._shards)

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.num_bytes for shard in self._shards)

    def new_samples(self, contents: Sequence[SampleContent]) -> list[int]:
        """Indices of the samples that are not recorded yet; of equal ones, only the first."""
        first = {content.key: index for index, content in reversed(list(enumerate(contents)))}
        return sorted(index for key, index in first.items() if key not in self._keys)

    def add(
        self,
        step: int,
        *,
        num_samples: int,
        names: Sequence[str],
        contents: Sequence[SampleContent],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Writes one step; it is on disk when this returns.

        Args:
            num_samples: of the whole step.
            names: of the samples whose tensors these are.
            contents: of the same samples.
        """
        content = save(dict(tensors)) if contents else b""
        if contents:
            replace_durably(self._folder / shard_file_name(step), content)
        shard = Shard(
            step=step,
            num_samples=num_samples,
            num_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest() if contents else "",
            names=tuple(names),
            contents=tuple(contents),
        )
        append_shard(self._folder, shard)
        self._remember(shard)

    def finish(self, *, steps: int, is_every_sample: bool) -> Coverage:
        """Writes into the manifest how far the recording reaches; only now can it be trained from."""
        coverage = Coverage(steps=steps, is_every_sample=is_every_sample, samples=len(self._keys), bytes=self.num_bytes)
        self._manifest = dataclasses.replace(self._manifest, coverage=coverage)
        self._manifest.write(self._folder)
        return coverage

    def _lock(self, stack: ExitStack) -> None:
        if not (self._folder / MANIFEST_FILE).exists():
            strange = sorted(path.name for path in self._folder.iterdir() if not _is_ours(path.name))
            if strange:
                raise ValueError(f"{self._folder}: holds {strange[0]}, expected a new folder or a recording")
        file = stack.enter_context((self._folder / _LOCK_FILE).open("w"))
        try:
            # The system lets go of it when the process ends, however it ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self._folder}: another process is recording into it") from None

    def _open(self) -> None:
        for path in self._folder.glob(f"*{PARTIAL_SUFFIX}"):
            path.unlink()
        if (self._folder / MANIFEST_FILE).exists():
            found = read_manifest(self._folder)
            refuse_other(self._folder, found, self._manifest)
            self._manifest = found
        else:
            self._manifest.write(self._folder)
        shards = read_index(self._folder)
        for shard in shards:
            if shard.fault(self._folder, is_thorough=self._is_thorough) is None:
                self._remember(shard)
        if len(self._shards) < len(shards):
            self._manifest = dataclasses.replace(self._manifest, coverage=None)
            self._manifest.write(self._folder)
        replace_durably(self._folder / INDEX_FILE, b"".join(shard.line() for shard in self._shards))

    def _remember(self, shard: Shard) -> None:
        self._shards.append(shard)
        self._keys.update(content.key for content in shard.contents)


def _is_ours(name: str) -> bool:
    """What a recording that was killed before it had a manifest leaves."""
    return name in (_LOCK_FILE, MANIFEST_FILE + PARTIAL_SUFFIX)
