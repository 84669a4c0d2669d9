"""The verb on tiny models: a recording in place of the teacher, and everything that must not fit it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from distill.cli import main
from distill.config import load_config
from distill.interrupt import StopRequest
from distill.miniature.items import make_item
from distill.recipe import Recipe
from distill.recording.index import INDEX_FILE, read_index, shard_file_name
from distill.recording.manifest import read_manifest
from distill.recording.teacher import open_recorded_teacher
from tests.distill import kill_recorder

EXACT = ["--top-k", "all", "--dtype", "float32"]

# float32's rounding, where samples meet in other batches than in the recording.
FLOAT32 = {"rel": 1e-6, "abs": 1e-6}


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line)["losses"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def recipe_path(write_recipe: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def live(recipe_path: Path) -> Path:
    """A run with the live teacher."""
    assert main(["train", str(recipe_path)]) == 0
    return recipe_path.parent / "run"


@pytest.fixture(scope="module")
def exact(recipe_path: Path) -> Path:
    """A recording without loss."""
    assert main(["record", str(recipe_path), str(recipe_path.parent / "exact"), *EXACT]) == 0
    return recipe_path.parent / "exact"


@pytest.fixture(scope="module")
def small(recipe_path: Path) -> Path:
    """A recording with the defaults: bfloat16, the 64 likeliest tokens."""
    assert main(["record", str(recipe_path), str(recipe_path.parent / "small")]) == 0
    return recipe_path.parent / "small"


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_training_from_an_exact_recording_equals_live_training(
    live: Path, exact: Path, recipe_path: Path, tmp_path: Path, model_folders: dict[str, Path], micro_batches: int
) -> None:
    """Without the teacher's weights: of its folder nothing is left, or its configuration alone."""
    settings = [f"train.micro_batches={micro_batches}"]
    if micro_batches == 2:
        # A live teacher sees half of the samples, whose sums have another order than in the recording; where a student
        # learns fast, six steps enlarge that beyond any bound.
        settings += ["train.model_lr=1e-5", "train.gain_lr=1e-5", "train.mixing_lr=1e-5"]
        live = tmp_path / "live"
        assert main(["train", str(recipe_path), f"output={live}", *settings]) == 0
    teacher = model_folders["teacher"]
    away = teacher.rename(tmp_path / "away")
    try:
        if micro_batches == 2:
            teacher.mkdir()
            shutil.copy(away / "config.json", teacher)
        overrides = [f"teacher.recording={exact}", f"output={tmp_path / 'run'}"]
        assert main(["train", str(recipe_path), *overrides, *settings]) == 0
    finally:
        shutil.rmtree(teacher, ignore_errors=True)
        away.rename(teacher)
    recorded = losses(tmp_path / "run")
    assert len(recorded) == 6
    assert recorded == [pytest.approx(terms, **FLOAT32) for terms in losses(live)]


def test_a_small_recording_is_close(live: Path, small: Path, recipe_path: Path, tmp_path: Path) -> None:
    arguments = [f"teacher.recording={small}", f"output={tmp_path / 'run'}"]
    assert main(["train", str(recipe_path), *arguments]) == 0
    pairs = list(zip(losses(live), losses(tmp_path / "run"), strict=True))
    differences = [{name: recorded[name] / full[name] - 1 for name in full} for full, recorded in pairs]
    for step, each in enumerate(differences):
        print(f"step {step}:", {name: f"{difference:.4%}" for name, difference in each.items()})
    # At the first step both students are the same; later they have learned from unequal gradients.
    first = differences[0]
    assert first["sft"] == 0
    assert abs(first["alignment"]) < 1e-4
    assert abs(first["matching"]) < 1e-3
    # The KL of a coarser distribution is below the full one; random models leave much to the others.
    assert -0.3 < first["kl"] < 0


def test_the_estimate_is_printed_before_and_right(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "recording"
    assert main(["record", str(recipe_path), str(folder), *EXACT]) == 0
    output = capsys.readouterr()
    coverage = read_manifest(folder).coverage
    assert coverage is not None
    printed = re.search(r"record: (\d+) samples of about ([\d.]+) kB, ([\d.]+) kB in all; .* free", output.err)
    assert printed is not None
    assert int(printed[1]) == coverage.samples
    # The files' headers are not counted.
    assert float(printed[2]) * 1e3 == pytest.approx(coverage.bytes / coverage.samples, rel=0.05)
    assert float(printed[3]) * 1e3 == pytest.approx(coverage.bytes, rel=0.05)
    assert output.out.endswith(f"distill train {recipe_path} teacher.recording={folder}\n")


def test_every_file_is_bound_to_the_recipe(exact: Path, small: Path) -> None:
    manifest = read_manifest(exact)
    assert len(manifest.teacher["weights_sha256"]) == 64
    assert manifest.logits is not None
    assert manifest.logits.top_k is None
    assert manifest.layers.keys() == {2}
    assert manifest.coverage is not None
    assert manifest.coverage.steps == 6
    assert not manifest.coverage.is_every_sample
    assert manifest.coverage.bytes == sum(path.stat().st_size for path in exact.glob("*.safetensors"))
    assert read_manifest(small).coverage.bytes < manifest.coverage.bytes / 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.seed=8"], "data.seed was 7, is 8"),
        (["data.miniature.renderings=2"], r"data.miniature.renderings was 1, is 2"),
        (["data.tokens_per_step=300"], r"data.tokens_per_step was 240, is 300"),
        (["teacher.dtype=bfloat16"], "teacher.dtype was 'float32', is 'bfloat16'"),
        (["teacher.path=miniature:teacher"], "teacher.config_sha256 was .* is .*; teacher.weights.*safetensors was"),
        (["teacher.path=elsewhere"], "teacher.path was .* is 'elsewhere'"),
        (["loss.matching.layers=[{student: 1, teacher: 0}]"], r"layers: 0 is not among \[2\]"),
        (["loss.temperature=3"], "loss.temperature was 2.0, is 3.0; only a recording of all logits"),
        (["train.steps=9"], "holds 6 steps, expected the recipe's 9; record the rest with: distill record RECIPE"),
        (["train.seed=8", "teacher.dtype=bfloat16"], "teacher.dtype was .*; data.seed was"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    small: Path, recipe_path: Path, processor: Any, overrides: list[str], message: str
) -> None:
    recipe = load_config(Recipe, recipe_path, [f"teacher.recording={small}", *overrides])
    with pytest.raises(ValueError, match=message):
        open_recorded_teacher(recipe, processor)


def test_all_logits_serve_every_temperature(exact: Path, recipe_path: Path, processor: Any) -> None:
    overrides = [f"teacher.recording={exact}", "loss.temperature=3", "loss.matching.rows=answer", "train.steps=4"]
    open_recorded_teacher(load_config(Recipe, recipe_path, overrides), processor)


def test_rows_and_logits_that_were_not_recorded_are_refused(recipe_path: Path, tmp_path: Path, processor: Any) -> None:
    narrow = ["loss.alignment.weight=0", "loss.matching.rows=answer", "loss.lambda_kl=0", "train.steps=1"]
    assert main(["record", str(recipe_path), str(tmp_path / "narrow"), *narrow]) == 0
    recipe = load_config(Recipe, recipe_path, [f"teacher.recording={tmp_path / 'narrow'}", "train.steps=1"])
    message = "layer 2 holds queries of 'answer' rows .* need 'all' and 'all'; logits: none are recorded"
    with pytest.raises(ValueError, match=message):
        open_recorded_teacher(recipe, processor)


def test_another_processor_is_refused(
    small: Path, recipe_path: Path, tmp_path: Path, model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy(model_folders["base"], tmp_path / "base")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "user"))
    settings = other / "processor_config.json"
    settings.write_text(settings.read_text().replace("16384", "4096"))
    arguments = [f"teacher.recording={small}", f"student.path={other}", f"output={tmp_path / 'run'}"]
    assert main(["train", str(recipe_path), *arguments]) == 1
    message = capsys.readouterr().err
    assert "processor.chat_template_sha256 was" in message
    assert "processor.image_processor.size.longest_edge was 16384, is 4096" in message


def test_a_damaged_shard_is_refused_and_mended(
    exact: Path, recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(exact, tmp_path / "recording")
    path = folder / shard_file_name(1)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    train = ["train", str(recipe_path), f"teacher.recording={folder}", f"output={tmp_path / 'run'}"]
    assert main(train) == 1
    assert f"{path}: another SHA-256 than in {INDEX_FILE}; repair it with" in capsys.readouterr().err
    assert main(["record", str(recipe_path), str(folder), *EXACT, "--check"]) == 0
    assert path.read_bytes() == content


@pytest.fixture
def jsonl(recipe_path: Path, tmp_path: Path) -> list[str]:
    """Overrides for five lines of data, in steps of two samples at most."""
    lines = []
    for index in range(5):
        item = make_item(index, 2, "open")
        parts: list[dict[str, Any]] = []
        for place, image in enumerate(item.images):
            image.save(tmp_path / f"{index}-{place}.png")
            parts.append({"type": "image_url", "image_url": {"url": f"{index}-{place}.png"}})
        parts.append({"type": "text", "text": "what is there?"})
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": item.answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    data = [f"data.jsonl.path={tmp_path / 'data.jsonl'}", "data.miniature=null", "data.max_samples_per_step=2"]
    return [str(recipe_path), *data, f"output={tmp_path / 'run'}", "train.steps=7"]


def test_samples_on_disk_are_recorded_once_for_all_epochs(jsonl: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    assert main(["record", jsonl[0], str(folder), *jsonl[1:], *EXACT]) == 0
    coverage = read_manifest(folder).coverage
    assert coverage is not None
    assert (coverage.steps, coverage.samples, coverage.is_every_sample) == (3, 5, True)
    assert main(["train", *jsonl, f"output={tmp_path / 'live'}"]) == 0
    # Another order and other steps: samples that were recorded in one batch come in several.
    for name, overrides in (("run", []), ("other", ["train.seed=8", "data.tokens_per_step=100"])):
        arguments = [*jsonl, f"teacher.recording={folder}", f"output={tmp_path / name}", *overrides]
        assert main(["train", *arguments]) == 0
    assert losses(tmp_path / "run") == [pytest.approx(terms, **FLOAT32) for terms in losses(tmp_path / "live")]


def test_a_sample_that_changed_is_refused_by_name(
    jsonl: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "recording"
    assert main(["record", jsonl[0], str(folder), *jsonl[1:]]) == 0
    data = tmp_path / "data.jsonl"
    train = ["train", *jsonl, f"teacher.recording={folder}"]
    for index in range(5):
        make_item(9, 2, "open").images[0].save(tmp_path / f"{index}-1.png")
    assert main(train) == 1
    assert f"recorded in {folder} with other images; expected the same sample" in capsys.readouterr().err
    data.write_text(data.read_text().replace("what", "who"))
    assert main(train) == 1
    assert "data.jsonl.path was 'sha256:" in capsys.readouterr().err


def test_ctrl_c_stops_between_two_steps_and_the_same_command_goes_on(
    exact: Path,
    recipe_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from distill.recording.recorder import Recorder

    record = Recorder._record

    def pressing(recorder: Recorder, writer: Any, step: int, *inputs: Any) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        record(recorder, writer, step, *inputs)

    folder = tmp_path / "recording"
    arguments = ["record", str(recipe_path), str(folder), *EXACT]
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_record", pressing)
        assert main(arguments) == 130
    message = capsys.readouterr().err
    assert "stopped after 3 steps" in message
    assert f"distill record {recipe_path} {folder} --top-k all --dtype float32" in message
    assert main(["train", str(recipe_path), f"teacher.recording={folder}", f"output={tmp_path / 'run'}"]) == 1
    assert "not finished; go on with the `distill record` that began it" in capsys.readouterr().err
    assert main(arguments) == 0
    assert kill_recorder.files(folder) == kill_recorder.files(exact)
    with StopRequest() as stop:
        assert not stop.is_set


def test_a_killed_recorder_loses_and_doubles_nothing(recipe_path: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, then to the end: the same files as without a kill, bit for bit."""
    settings = [f"train.steps={kill_recorder.NUM_STEPS}", *EXACT]
    assert main(["record", str(recipe_path), str(tmp_path / "whole"), *settings]) == 0
    folder = tmp_path / "killed"
    command = [sys.executable, kill_recorder.__file__, "7", str(recipe_path), str(folder), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    print("steps recorded at each kill:", done.stdout)
    steps_at_kills = json.loads(done.stdout.splitlines()[-1])
    # A machine that stalls may let the child go on a while, or to its end.
    assert steps_at_kills
    assert 0 < steps_at_kills[0] < kill_recorder.NUM_STEPS
    assert kill_recorder.files(folder) == kill_recorder.files(tmp_path / "whole")
    assert len(read_index(folder)) == kill_recorder.NUM_STEPS


def test_a_longer_training_extends_a_recording(exact: Path, recipe_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    arguments = ["record", str(recipe_path), str(folder), *EXACT]
    assert main([*arguments[:3], "train.steps=2", *EXACT]) == 0
    assert main(arguments) == 0
    assert kill_recorder.files(folder) == kill_recorder.files(exact)


def test_a_full_disk_is_found_before(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert main(["record", str(recipe_path), str(tmp_path / "recording")]) == 1
    assert "1 kB free, expected" in capsys.readouterr().err
    assert not list((tmp_path / "recording").glob("*.safetensors"))


def test_a_recipe_without_a_teacher_is_refused(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["teacher=null", "loss.lambda_kl=0", "loss.lambda_laid=0"]
    assert main(["record", str(recipe_path), str(tmp_path / "recording"), *overrides]) == 1
    assert "teacher: missing, expected a model: there is nothing to record" in capsys.readouterr().err


def test_a_teacher_of_another_tokenizer_is_refused_before_the_first_step(
    recipe_path: Path,
    tmp_path: Path,
    model_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One whose samples have the same tokens, but whose logits have one more."""
    teacher = copy(model_folders["teacher"], tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(teacher)
    assert main(["record", str(recipe_path), str(tmp_path / "recording"), f"teacher.path={teacher}"]) == 1
    assert "1 tokens differ; '<new>' is unknown for the student" in capsys.readouterr().err
    assert not (tmp_path / "recording").exists()


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["record", "--help"])
    text = capsys.readouterr().out
    assert "distill train recipe.yaml teacher.recording=runs/signals" in text
    with pytest.raises(SystemExit):
        main(["record", "recipe.yaml", "out", "--top-k", "many"])
    assert "'many', expected a whole number or all" in capsys.readouterr().err
