"""`laid-serve plan` as a user runs it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from server.cli import main

TEACHER = Path(__file__).parents[3] / "distill" / "miniature" / "checkpoints" / "teacher"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TEACHER, tmp_path / "model"))


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_text_holds_what_an_operator_asks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(TEACHER), "--memory", "24", "--image", "64x48"]) == 0

    text = capsys.readouterr().out
    assert "3 layers x 2 x 2 KV heads x 32 x 2 bytes" in text
    assert re.search(r"image of 64x48 +9\.0 KiB   12 tokens", text)
    assert "requests of 2,048 tokens, the context length" in text
    assert "Requests of 8k, 32k, 128k tokens are longer than the context length." in text
    assert "Assumed: vLLM may use 92% of a GPU (--utilization), of which 4 GiB" in text


def test_the_json_holds_the_same_for_a_program(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    change(checkpoint, text_config=text | {"max_position_embeddings": 131072})
    arguments = ["--memory", "48", "--memory", "80", "--utilization", "0.9", "--reserve", "0", "--kv-dtype", "fp8"]

    assert main(["plan", str(checkpoint), *arguments, "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert plan["kv_cache_bytes_per_token"] == 3 * 2 * 2 * 32
    assert plan["assumed"] == {"utilization": 0.9, "reserve_gib": 0}
    assert [gpu["memory_gib"] for gpu in plan["gpus"]] == [48, 80]
    for gpu in plan["gpus"]:
        names = [row["length"] for row in gpu["requests"]]
        assert names == ["8k", "32k", "128k", "context length", "effective window"]
        assert all(row["requests"] == gpu["tokens"] // 16 // -(-row["tokens"] // 16) for row in gpu["requests"])


def test_a_sliding_window_is_ignored_and_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    change(checkpoint, text_config=text | {"use_sliding_window": True, "sliding_window": 512})

    assert main(["plan", str(checkpoint)]) == 0

    assert "a sliding window of 512 tokens; planned as if every layer kept all" in capsys.readouterr().out


def test_an_unknown_family_is_refused_by_name_and_with_a_way_on(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(checkpoint, model_type="pixtral")

    assert main(["plan", str(checkpoint)]) == 2

    message = capsys.readouterr().err
    assert "model_type 'pixtral' is not known (README.md, \"Add a family\"" in message
    assert "qwen2_5_vl" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--memory", "0"],
        ["--utilization", "1.5"],
        ["--tensor-parallel", "0"],
        ["--image", "64"],
        ["--kv-dtype", "int4"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(TEACHER), *arguments])

    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_folder_called_plan_is_served_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "plan").mkdir()
    monkeypatch.chdir(tmp_path)

    assert main(["./plan"]) == 2

    assert "plan/config.json: no such file" in capsys.readouterr().err.replace("laid-serve: ", "")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "laid-serve plan runs/student --memory 80" in capsys.readouterr().out

    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "--engine-arg=--kv-cache-dtype=fp8" in capsys.readouterr().out
