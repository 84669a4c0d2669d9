"""How large a checkpoint's weights are, by the headers of its safetensors files; no weight is read."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.families.processor_files import CheckpointError, read_json, require

# The header's length stands in a file's first eight bytes: https://github.com/huggingface/safetensors#format
LENGTH_BYTES = 8
# A header lists a few thousand tensors; more than this is no header.
MAX_HEADER_BYTES = 100 * 1024 * 1024
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of one value, by the name of the dtype in which an engine may serve."""
CONVERTED = {"F32", "BF16", "F16"}
"""Tensors that the engine brings to its own dtype as it loads; all others (quantised ones) stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All tensors of a checkpoint."""

    stored_bytes: int
    num_values: int
    """Of tensors that the engine converts."""
    kept_bytes: int
    """Of those that it does not."""

    def loaded_bytes(self, dtype: str) -> int:
        """What they take in the engine's memory, served as `dtype`; a key of `DTYPE_BYTES`."""
        return self.num_values * DTYPE_BYTES[dtype] + self.kept_bytes


def read_weights(folder: Path) -> Weights:
    """Adds up a checkpoint's tensors.

    Raises:
        CheckpointError: there are none, or a file is no safetensors file.
    """
    sizes: Counter[str] = Counter()
    values = 0
    for path in _files(folder):
        for tensor in _tensors(path):
            begin, end = require(tensor, "data_offsets", path)
            dtype = require(tensor, "dtype", path)
            sizes[dtype] += end - begin
            if dtype in CONVERTED:
                values += math.prod(require(tensor, "shape", path))
    kept = sum(size for dtype, size in sizes.items() if dtype not in CONVERTED)
    return Weights(stored_bytes=sizes.total(), num_values=values, kept_bytes=kept)


def _files(folder: Path) -> list[Path]:
    """Those that an index names, where there is one: a folder may hold the same weights in other files too."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = {name for index in indices for name in require(read_json(index), "weight_map", index).values()}
        return [folder / name for name in sorted(names)]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors; expected a checkpoint folder with its weights")
    return files


def _tensors(path: Path) -> Iterator[Mapping[str, Any]]:
    """The entry of each tensor in a file's header."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file, though the index names it")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        content = file.read(length) if length <= MAX_HEADER_BYTES else b""
    try:
        header = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: no safetensors file: its header is not JSON") from error
    header.pop("__metadata__", None)
    yield from header.values()
