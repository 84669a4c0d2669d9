"""The whole verb on tiny models: a checkpoint with gains in, a stock one out."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rope_gain
from distill.checkpoint import laid_record, read_laid, weights_sha256, write_laid
from distill.cli import main
from distill.miniature.items import make_item
from rope_gain import RopeGainConfig

STATIC = RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="static")


@pytest.fixture(scope="session")
def write_gained(
    model_folders: dict[str, Path], processor: Any
) -> Callable[[Path, RopeGainConfig, torch.dtype], torch.nn.Module]:
    """Writes the tiny base model with random gains, as a student; returns it."""

    def write(folder: Path, config: RopeGainConfig, dtype: torch.dtype) -> torch.nn.Module:
        model = rope_gain.load_pretrained(model_folders["base"], dtype=dtype)
        rope_gain.attach(model, config)
        generator = torch.Generator().manual_seed(1)
        for gain in rope_gain.gain_modules(model).values():
            for parameter in gain.parameters():
                parameter.data.normal_(0, 0.3, generator=generator)
        rope_gain.save_pretrained(model, folder)
        processor.save_pretrained(folder)
        record = laid_record("student", training={"steps": 3, "seconds": 1.0, "losses": {}})
        write_laid(folder, {**record, "effective_window": {"task": "miniature/open"}})
        return model

    return write


@pytest.fixture(scope="module")
def gained(write_gained: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with static gains, to look at; nobody writes into it."""
    folder = tmp_path_factory.mktemp("gained")
    write_gained(folder, STATIC, torch.float32)
    return folder


@pytest.fixture(scope="module")
def folded(gained: Path) -> Path:
    """The same, folded; nobody writes into it."""
    out = gained.with_name(f"{gained.name}-folded")
    assert main(["fold", str(gained), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def inputs(processor: Any) -> Any:
    messages = make_item(3, 7, "open").messages()
    return processor.apply_chat_template(messages, return_tensors="pt", return_dict=True, tokenize=True)


@torch.no_grad()
def logits(model: Any, inputs: Any) -> torch.Tensor:
    found: torch.Tensor = model(**inputs).logits
    return found


def test_plain_transformers_gets_the_same_logits(
    gained: Path, folded: Path, inputs: Any, model_folders: dict[str, Path]
) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    plain, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(folded, output_loading_info=True)

    assert not any(loading.values()), loading
    expected = logits(rope_gain.load_pretrained(gained), inputs)
    torch.testing.assert_close(logits(plain, inputs), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    stock = logits(rope_gain.load_pretrained(model_folders["base"]), inputs)
    assert (expected - stock).abs().max() > 0.01 * expected.abs().max()


def test_the_folder_is_a_stock_checkpoint(gained: Path, folded: Path, model_folders: dict[str, Path]) -> None:
    names = {path.name for path in folded.iterdir()}
    assert names == {path.name for path in gained.iterdir()} - {"laid.safetensors"} | {"model.safetensors"}
    config = json.loads((folded / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert config.keys() == json.loads((model_folders["base"] / "config.json").read_text()).keys()
    replaced = {"model.safetensors", "laid.json", "config.json", "generation_config.json"}
    for name in names - replaced:
        assert (folded / name).read_bytes() == (gained / name).read_bytes(), name


def test_laid_json_keeps_the_history_and_tells_of_the_fold(gained: Path, folded: Path) -> None:
    record = read_laid(folded)
    assert record is not None
    note = record.pop("folded")
    assert record == read_laid(gained)
    assert note["source"] == {"path": str(gained), "sha256": weights_sha256(gained)}
    assert note["images"] == 6
    for difference in (note["folding"], note["stored"]):
        assert 0 < difference["largest"] <= difference["tolerance"]


def test_it_prints_the_differences_and_how_to_go_on(
    gained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fold", str(gained), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    record = read_laid(tmp_path / "out")
    assert record is not None
    assert f"on 6 images, {record['folded']['prompt_tokens']} tokens:" in printed
    assert re.search(rf"as stored +{record['folded']['stored']['largest']:.2g} ", printed)
    assert printed.endswith(f"make serve MODEL={tmp_path / 'out'}\n")


def test_a_bfloat16_checkpoint_is_scaled_in_float32_and_stays_bfloat16(
    write_gained: Callable[..., Any], tmp_path: Path
) -> None:
    gained = write_gained(tmp_path / "gained", STATIC, torch.bfloat16)
    assert main(["fold", str(tmp_path / "gained"), str(tmp_path / "out")]) == 0
    folded = rope_gain.load_pretrained(tmp_path / "out", dtype="auto")
    rope_gain.fold(gained)
    weights = folded.state_dict()
    for name, weight in gained.state_dict().items():
        assert weights[name].dtype == torch.bfloat16
        assert torch.equal(weights[name], weight), name


def test_a_checkpoint_without_laid_json_gets_one(gained: Path, tmp_path: Path) -> None:
    shutil.copytree(gained, tmp_path / "gained")
    (tmp_path / "gained" / "laid.json").unlink()
    assert main(["fold", str(tmp_path / "gained"), str(tmp_path / "out")]) == 0
    record = read_laid(tmp_path / "out")
    assert record is not None
    assert record["kind"] == "student"
    assert "folded" in record


def refusal(capsys: pytest.CaptureFixture[str], source: Path, out: Path) -> str:
    assert main(["fold", str(source), str(out)]) == 1
    # After the bars that transformers draws.
    return capsys.readouterr().err.splitlines()[-1]


def test_gains_that_depend_on_the_position_are_refused(
    write_gained: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gained(tmp_path / "gained", RopeGainConfig(position="log"), torch.float32)
    message = refusal(capsys, tmp_path / "gained", tmp_path / "out")
    assert message.startswith(f"distill: {tmp_path / 'gained'}/config.json: rope_gain.position: got 'log'")
    assert "train with 'position: static' instead" in message
    assert not (tmp_path / "out").exists()


def test_a_stock_checkpoint_is_refused(
    model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, model_folders["base"], tmp_path / "out")
    assert f"{model_folders['base']}: a stock checkpoint without gains" in message


def test_an_existing_folder_is_left_alone(gained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert refusal(capsys, gained, tmp_path / "out") == f"distill: {tmp_path / 'out'}: exists, expected a new folder"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path / "nothing") in refusal(capsys, tmp_path / "nothing", tmp_path / "out")


@pytest.mark.parametrize(
    ("dtype", "log_gain", "how"),
    [
        pytest.param(torch.float32, 100.0, "in float32", id="float32"),
        # exp(12) is a float32 gain; times a weight it is too large for float16.
        pytest.param(torch.float16, 12.0, "as stored", id="float16"),
    ],
)
def test_logits_that_differ_are_refused_and_nothing_is_left(
    write_gained: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dtype: torch.dtype,
    log_gain: float,
    how: str,
) -> None:
    model = write_gained(tmp_path / "gained", STATIC, dtype)
    rope_gain.gain_modules(model)[0].query_a.data[0, 0] = log_gain
    rope_gain.gain_modules(model)[0].key_a.data[0, 0] = -log_gain
    rope_gain.save_pretrained(model, tmp_path / "gained")
    message = refusal(capsys, tmp_path / "gained", tmp_path / "out")
    assert f"before and after folding differ by nan {how}" in message
    assert [path.name for path in tmp_path.iterdir()] == ["gained"]
