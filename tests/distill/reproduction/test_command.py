"""The verb: its smallest form here, and the short experiment in a tier of its own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from distill.cli import main
from distill.reproduction import command
from distill.reproduction.run import Scale


def rows(folder: Path) -> dict[str, Any]:
    comparison = json.loads((folder / "comparison" / "compare.json").read_text())
    return {row["name"]: row for row in comparison["rows"]}


def test_it_makes_measures_and_compares_and_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scale(seeds=(1,), settings=("train.steps=2",), sizes=(1, 2), items=2, spectrum_sizes=(8,))
    monkeypatch.setattr(command, "QUICK", scale)
    arguments = ["reproduce", "--quick", "--only", "yarn", "static", "--jobs", "2", "--out", str(tmp_path)]

    assert main(arguments) == 0

    assert list(rows(tmp_path)) == ["base", "base with YaRN", "LAid, static gain, folded"]
    assert (tmp_path / "static" / "seed-1" / "folded" / "model.safetensors").exists()
    yarn = json.loads((tmp_path / "yarn" / "checkpoint" / "config.json").read_text())["text_config"]
    assert yarn["rope_parameters"]["rope_type"] == "yarn"
    spectra = json.loads((tmp_path / "spectra" / "spectrum.json").read_text())
    assert list(spectra["checkpoints"]) == ["base", "base with YaRN", "LAid, static gain, folded"]
    logs = {path: path.read_bytes() for path in tmp_path.rglob("log.txt")}
    assert len(logs) == 4, "three models and the spectra"
    assert main(arguments) == 0
    assert logs == {path: path.read_bytes() for path in tmp_path.rglob("log.txt")}


def test_what_fails_stops_it_and_says_how_to_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sft" / "seed-1").mkdir(parents=True)
    (tmp_path / "sft" / "seed-1" / "state.pt").write_text("broken")
    (tmp_path / "base" / "evaluation").mkdir(parents=True)
    (tmp_path / "base" / "evaluation" / "report.json").write_text("{}")

    assert main(["reproduce", "--quick", "--only", "sft", "--out", str(tmp_path)]) == 1

    said = capfd.readouterr().err
    assert "the same command goes on from here" in said
    assert str(tmp_path / "sft" / "seed-1" / "log.txt") in said


def test_ctrl_c_stops_what_runs_and_the_rest_never_begins(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distill", "reproduce", "--quick", "--only", "sft", "laid", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        log = tmp_path / "base" / "log.txt"
        while not log.exists() or "evaluate:" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 130
    assert "the same command goes on from here" in said
    assert not (tmp_path / "sft").exists()
    running = [child for child in psutil.process_iter(["cmdline"]) if str(tmp_path) in (child.info["cmdline"] or ())]
    assert not running


def test_ctrl_c_stops_the_spectra(tmp_path: Path) -> None:
    program = (
        "from dataclasses import replace; from pathlib import Path; from distill.reproduction.arms import ARMS; "
        "from distill.reproduction.command import FULL; "
        "from distill.reproduction.run import Reproduction, measure_spectra; "
        # Half an hour's work, so that it does not end by itself.
        f"scale = replace(FULL, spectrum_sizes=(500,)); folder = Path({str(tmp_path)!r}); "
        "measure_spectra(Reproduction(folder=folder, scale=scale), ARMS[:1])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        log = tmp_path / "spectra" / "log.txt"
        while not log.exists() or "spectrum:" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
    running = [
        child
        for child in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in word for word in child.info["cmdline"] or ())
    ]
    _, alive = psutil.wait_procs(running, timeout=60)
    assert not alive


def test_an_unknown_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--only", "sftt", "--out", str(tmp_path)]) == 1
    assert "--only: 'sftt', expected one of base, yarn, self-extend" in capsys.readouterr().err


@pytest.mark.experiment
@pytest.mark.timeout(1200)
def test_the_short_experiment_orders_its_rows(tmp_path: Path) -> None:
    assert main(["reproduce", "--quick", "--out", str(tmp_path)]) == 0
    windows = {
        name: next(each["value"] for each in row["windows"] if (each["kind"], each["threshold"]) == ("absolute", 0.6))
        for name, row in rows(tmp_path).items()
    }
    assert windows["base"] < windows["SFT"] < windows["LAid"], windows
