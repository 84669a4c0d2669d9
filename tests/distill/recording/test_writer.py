import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.recording.content import SampleContent
from distill.recording.index import INDEX_FILE, Shard, read_index, shard_file_name
from distill.recording.manifest import Coverage, Manifest, read_manifest
from distill.recording.reader import RecordingReader
from distill.recording.writer import RecordingWriter
from tests.distill.recording import kill_writer

MANIFEST = kill_writer.MANIFEST


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    folder = tmp_path / "recording"
    kill_writer.record(folder)
    return folder


def test_a_writer_killed_before_any_line_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """About 150 moments: after each the recording is taken up and equals the uninterrupted one, bit for bit."""
    done = subprocess.run(
        [sys.executable, kill_writer.__file__, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    num_kills, wrong = done.stdout.split(maxsplit=1)
    assert int(num_kills) > 100
    assert wrong.strip() == "[]"


def cut_line(folder: Path) -> None:
    path = folder / INDEX_FILE
    path.write_bytes(path.read_bytes()[:-7])


def forget_line(folder: Path) -> None:
    path = folder / INDEX_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))


def leave_half_a_shard(folder: Path) -> None:
    forget_line(folder)
    shard = folder / shard_file_name(1)
    shard.rename(folder / f"{shard.name}.partial")
    (folder / f"{shard.name}.partial").write_bytes(b"half")


def cut_shard(folder: Path) -> None:
    shard = folder / shard_file_name(1)
    shard.write_bytes(shard.read_bytes()[:-1])


def lose_shard(folder: Path) -> None:
    (folder / shard_file_name(0)).unlink()


@pytest.mark.parametrize("damage", [cut_line, forget_line, leave_half_a_shard, cut_shard, lose_shard])
def test_what_is_damaged_is_recorded_again(recorded: Path, damage: Callable[[Path], None]) -> None:
    shards = {shard.step: shard for shard in read_index(recorded)}
    files = {path.name: path.read_bytes() for path in recorded.glob("*.safetensors")}
    damage(recorded)
    kill_writer.record(recorded)
    assert {shard.step: shard for shard in read_index(recorded)} == shards
    assert {path.name: path.read_bytes() for path in recorded.glob("*.safetensors")} == files
    assert not list(recorded.glob("*.partial"))
    assert read_manifest(recorded).coverage == expected_coverage(shards)


def expected_coverage(shards: dict[int, Shard]) -> Coverage:
    num_bytes = sum(shard.num_bytes for shard in shards.values())
    return Coverage(steps=3, is_every_sample=False, samples=2, bytes=num_bytes)


def test_only_a_thorough_look_finds_a_flipped_bit(recorded: Path) -> None:
    path = recorded / shard_file_name(1)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with RecordingWriter(recorded, MANIFEST) as writer:
        assert writer.steps == {0, 1, 2}
    with RecordingWriter(recorded, MANIFEST, is_thorough=True) as writer:
        assert writer.steps == {0, 2}
        assert writer.num_samples == 2
    with pytest.raises(ValueError, match="not finished; go on with the `distill record` that began it"):
        RecordingReader(recorded)


def test_a_sample_is_recorded_once(recorded: Path) -> None:
    assert [len(shard.contents) for shard in read_index(recorded)] == [1, 1, 0]
    reader = RecordingReader(recorded)
    content = SampleContent(tokens="tokens 0", positions="positions", images="images")
    (tensors,) = reader.read([content], ["sample 2"])
    assert torch.equal(tensors["k"], torch.arange(5))
    with RecordingWriter(recorded, MANIFEST) as writer:
        assert writer.new_samples([content, dataclasses.replace(content, tokens="new")] * 2) == [1]


def test_other_settings_are_refused(recorded: Path) -> None:
    other = dataclasses.replace(MANIFEST, teacher={"path": "other"}, dtype="bfloat16")
    with (
        pytest.raises(
            ValueError, match=r"expected the same .*: teacher.path was 'teacher', is 'other'; dtype was 'float32'"
        ),
        RecordingWriter(recorded, other),
    ):
        pass


def test_two_writers_at_a_time_are_refused(recorded: Path) -> None:
    with (
        RecordingWriter(recorded, MANIFEST),
        pytest.raises(ValueError, match="another process is recording into it"),
        RecordingWriter(recorded, MANIFEST),
    ):
        pass


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.partial").write_text("mine")
    with (
        pytest.raises(ValueError, match=r"holds notes\.partial, expected a new folder"),
        RecordingWriter(tmp_path, MANIFEST),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.partial"]


def test_a_manifest_of_another_format_is_refused(recorded: Path) -> None:
    path = recorded / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(ValueError, match="format: 1, expected 2; record again"):
        read_manifest(recorded)
    with pytest.raises(ValueError, match="expected a folder that `distill record` made"):
        read_manifest(recorded.parent)


def test_a_manifest_comes_back_as_it_was(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
