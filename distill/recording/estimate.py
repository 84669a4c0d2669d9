"""How large a recording will be, from the lengths of some samples: no model is run."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.data.batch import Batch
from distill.recording.manifest import LogitRecord, Manifest

_PROBED_STEPS = 8

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Size of a whole recording."""

    sample_bytes: float
    """Mean of the samples looked at."""
    num_samples: int

    @property
    def total_bytes(self) -> int:
        """Of all samples together."""
        return round(self.sample_bytes * self.num_samples)

    def __str__(self) -> str:
        return f"{self.num_samples} samples of about {readable(self.sample_bytes)}, {readable(self.total_bytes)} in all"


def estimate_size(
    make_batch: Callable[[int], Batch], manifest: Manifest, *, steps: int, num_source_samples: int | None
) -> Estimate:
    """Looks at the samples of a few steps, spread over the training.

    Args:
        steps: of the training.
        num_source_samples: how many different samples there are; None if they never repeat.
    """
    probes = sorted({probe * steps // _PROBED_STEPS for probe in range(_PROBED_STEPS)})
    sizes = [size for step in probes for size in sample_sizes(make_batch(step), manifest)]
    num_samples = round(len(sizes) / len(probes) * steps)
    if num_source_samples is not None:
        num_samples = min(num_samples, num_source_samples)
    return Estimate(sample_bytes=sum(sizes) / len(sizes), num_samples=num_samples)


def sample_sizes(batch: Batch, manifest: Manifest) -> list[int]:
    """Bytes of each sample's tensors; a shard's header, about 100 bytes a tensor, comes on top."""
    shape = manifest.attention
    sizes = [0] * len(batch.names)
    for need in manifest.layers.values():
        parts = ((shape.num_heads, need.query_rows), (shape.num_key_value_heads, need.key_rows))
        for num_heads, kind in parts:
            row_bytes = num_heads * shape.head_size * _DTYPE_BYTES[manifest.dtype]
            for sample, num_rows in enumerate(batch.rows(kind).valid_BR.sum(dim=1).tolist()):
                sizes[sample] += num_rows * row_bytes
    if manifest.logits is not None:
        row_bytes = _answer_row_bytes(manifest.logits, manifest.teacher["dtype"])
        for sample, num_rows in enumerate(batch.answer_BT.sum(dim=1).tolist()):
            sizes[sample] += num_rows * row_bytes
    return sizes


def check_space(folder: Path, needed_bytes: int) -> int:
    """Free bytes of the file system that the folder lies on, or will lie on.

    Raises:
        ValueError: they are too few.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise ValueError(
            f"{folder}: {readable(free_bytes)} free, expected {readable(needed_bytes)} for what is still to record; "
            "fewer layers, rows: question or answer, a smaller --top-k or --dtype bfloat16 make it smaller"
        )
    return free_bytes


def readable(num_bytes: float) -> str:
    """Such as 1.5 GB; powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


def _answer_row_bytes(record: LogitRecord, teacher_dtype: str) -> int:
    if record.top_k is None:
        return record.vocabulary_size * _DTYPE_BYTES[teacher_dtype]
    return record.top_k * 8 + 4
