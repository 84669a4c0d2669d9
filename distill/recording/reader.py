"""Reads a finished recording, sample by sample."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from distill.recording.content import SampleContent
from distill.recording.index import Shard, read_index
from distill.recording.manifest import Coverage, Manifest, read_manifest


class RecordingReader:
    """A recording on disk; of its tensors nothing stays in memory."""

    def __init__(self, folder: Path) -> None:
        """Reads the manifest and the index, and compares the sizes of all shards.

        Raises:
            ValueError: not a recording, not a finished one, or shards that are missing or cut off.
        """
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        if self.manifest.coverage is None:
            raise ValueError(f"{folder}: not finished; go on with the `distill record` that began it")
        self.coverage: Coverage = self.manifest.coverage
        self._verified: set[int] = set()
        self._places: dict[str, tuple[Shard, int]] = {}
        self._by_name: dict[str, SampleContent] = {}
        for shard in read_index(folder):
            self._refuse_fault(shard, is_thorough=False)
            for place, (name, content) in enumerate(zip(shard.names, shard.contents, strict=True)):
                self._places[content.key] = shard, place
                self._by_name[name] = content

    def read(self, contents: Sequence[SampleContent], names: Sequence[str]) -> list[dict[str, Tensor]]:
        """The tensors of these samples, on the CPU; a shard's checksum is compared when it is first met.

        Raises:
            ValueError: a sample that is not recorded, or not with this content; a damaged shard.
        """
        for content, name in zip(contents, names, strict=True):
            if content.key not in self._places:
                raise ValueError(self._unknown(content, name))
        return [self._tensors(*self._places[content.key]) for content in contents]

    def _tensors(self, shard: Shard, place: int) -> dict[str, Tensor]:
        if shard.step not in self._verified:
            self._refuse_fault(shard, is_thorough=True)
            self._verified.add(shard.step)
        prefix = f"{place}."
        with safe_open(self.folder / shard.file_name, "pt") as file:
            return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118

    def _refuse_fault(self, shard: Shard, *, is_thorough: bool) -> None:
        fault = shard.fault(self.folder, is_thorough=is_thorough)
        if fault is not None:
            raise ValueError(f"{fault}; repair it with the `distill record` that made it, and --check")

    def _unknown(self, content: SampleContent, name: str) -> str:
        recorded = self._by_name.get(name)
        if recorded is None:
            return f"{name}: not in the recording {self.folder}; expected the data and steps that it was made of"
        parts = " and ".join(content.differing(recorded))
        return (
            f"{name}: recorded in {self.folder} with other {parts}; expected the same sample, tokenizer, "
            "chat template and image sizes; record again into a new folder"
        )
