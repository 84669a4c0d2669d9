import dataclasses
import shutil
from pathlib import Path

import pytest

from distill.data.batch import Batch
from distill.model import Teacher
from distill.recording.estimate import Estimate, check_space, estimate_size, readable, sample_sizes
from distill.recording.manifest import LogitRecord, Manifest
from distill.recording.signals import cut

RECORDS = [
    None,
    LogitRecord(top_k=None, temperature=2.0, vocabulary_size=300),
    LogitRecord(top_k=7, temperature=2.0, vocabulary_size=300),
]


@pytest.mark.parametrize("logits", RECORDS, ids=["no logits", "all logits", "top 7"])
def test_sizes_are_those_of_the_tensors(
    teacher: Teacher, batch: Batch, manifest: Manifest, logits: LogitRecord | None
) -> None:
    manifest = dataclasses.replace(manifest, dtype="bfloat16", logits=logits)
    samples = cut(teacher.signals(batch, manifest.layers), batch, range(3), manifest)
    written = [
        sum(tensor.nbytes for name, tensor in values.items() if not name.startswith("scale")) for values in samples
    ]
    assert sample_sizes(batch, manifest) == written


def test_samples_that_repeat_are_counted_once(batch: Batch, manifest: Manifest) -> None:
    asked: list[int] = []

    def make_batch(step: int) -> Batch:
        asked.append(step)
        return batch

    endless = estimate_size(make_batch, manifest, steps=400, num_source_samples=None)
    assert endless.num_samples == 1200
    assert asked == [0, 50, 100, 150, 200, 250, 300, 350]
    assert estimate_size(make_batch, manifest, steps=400, num_source_samples=500).num_samples == 500
    assert estimate_size(make_batch, manifest, steps=2, num_source_samples=500).num_samples == 6
    assert endless.total_bytes == pytest.approx(400 * sum(sample_sizes(batch, manifest)), rel=1e-6)


def test_too_little_space_is_refused(tmp_path: Path) -> None:
    free_bytes = shutil.disk_usage(tmp_path).free
    assert check_space(tmp_path / "not" / "there", 0) > 0
    with pytest.raises(ValueError, match=r"free, expected .* for what is still to record; fewer layers"):
        check_space(tmp_path / "not" / "there", 2 * free_bytes)


def test_sizes_are_readable() -> None:
    assert [readable(size) for size in (0, 999, 24_200, 1_380_000, 71.8e9, 2.5e15)] == [
        "0 B",
        "999 B",
        "24.2 kB",
        "1.38 MB",
        "71.8 GB",
        "2500 TB",
    ]
    assert str(Estimate(sample_bytes=1500, num_samples=4)) == "4 samples of about 1.5 kB, 6 kB in all"
