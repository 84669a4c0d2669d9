import json
from pathlib import Path

import pytest

from distill.checkpoint import laid_record, read_laid, weights_sha256, whole_folder, write_laid


def test_the_record_survives_the_file(tmp_path: Path) -> None:
    training = {"steps": 3, "seconds": 1.5, "losses": {"kl": 0.25}}
    record = laid_record("student", recipe={"a": 1}, teacher={"path": "x", "sha256": None}, training=training)
    write_laid(tmp_path, record)
    assert read_laid(tmp_path) == record
    assert set(record) == {"format", "kind", "created", "versions", "recipe", "teacher", "training", "effective_window"}
    assert [path.name for path in tmp_path.iterdir()] == ["laid.json"]


def test_a_stock_folder_has_no_record(tmp_path: Path) -> None:
    assert read_laid(tmp_path) is None


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "laid.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="format: 2, expected 1"):
        read_laid(tmp_path)


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "student"

    def fail_half_way() -> None:
        with whole_folder(target) as partial:
            (partial / "config.json").write_text("{}")
            assert not target.exists()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".student.partial").mkdir()
    (tmp_path / ".student.partial" / "model.safetensors").write_text("half")
    with whole_folder(tmp_path / "student") as partial:
        (partial / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["config.json"]


def test_an_existing_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists, expected a new folder"), whole_folder(tmp_path):
        pass


def test_the_digest_is_of_the_weights_in_the_order_of_their_names(tmp_path: Path) -> None:
    assert weights_sha256(tmp_path) is None
    (tmp_path / "b.safetensors").write_bytes(b"world")
    (tmp_path / "a.safetensors").write_bytes(b"hello ")
    (tmp_path / "config.json").write_text("{}")
    assert weights_sha256(tmp_path) == "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
