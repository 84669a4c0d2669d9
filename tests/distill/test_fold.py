"""The whole verb on tiny models: a checkpoint with gains in, a stock one out."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import rope_gain
from distill.checkpoint import laid_record, read_laid, weights_sha256, write_laid
from distill.cli import main
from distill.miniature.items import make_item
from rope_gain import RopeGainConfig
from rope_gain.families import FAMILIES, Family, find_family
from tests.rope_gain.models import build_tiny, has_images, tiny_inputs

SHARED = RopeGainConfig(target="query_key", position="static")
GROWING = RopeGainConfig(target="query_key", position="log", reference_length=16)
STATIC = RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="static")


def attach_random(model: Any, config: RopeGainConfig) -> None:
    rope_gain.attach(model, config)
    generator = torch.Generator().manual_seed(1)
    for gain in rope_gain.gain_modules(model).values():
        for parameter in gain.parameters():
            parameter.data.normal_(0, 0.3, generator=generator)


def write_family(
    folder: Path, family: Family, config: RopeGainConfig, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """Writes the family's tiny model with random gains; returns it with its processor."""
    model, processor = build_tiny(family)
    model.to(dtype)
    attach_random(model, config)
    rope_gain.save_pretrained(model, folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.fixture(scope="session")
def write_gained(
    model_folders: dict[str, Path], processor: Any
) -> Callable[[Path, RopeGainConfig, torch.dtype], torch.nn.Module]:
    """Writes the tiny base model with random gains, as a student; returns it."""

    def write(folder: Path, config: RopeGainConfig, dtype: torch.dtype) -> torch.nn.Module:
        model = rope_gain.load_pretrained(model_folders["base"], dtype=dtype)
        attach_random(model, config)
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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_a_bfloat16_checkpoint_is_scaled_in_float32_and_stays_bfloat16(tmp_path: Path, family: Family) -> None:
    gained, _ = write_family(tmp_path / "gained", family, SHARED, torch.bfloat16)
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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_every_family_folds_into_what_plain_transformers_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: Family
) -> None:
    import transformers

    model, processor = write_family(tmp_path / "gained", family, SHARED)

    assert main(["fold", str(tmp_path / "gained"), str(tmp_path / "out")]) == 0

    plain = getattr(transformers, family.architecture).from_pretrained(tmp_path / "out")
    inputs = tiny_inputs(processor, images=(3,))
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(plain, inputs), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    record = read_laid(tmp_path / "out")
    assert record is not None
    images, tokens = record["folded"]["images"], record["folded"]["prompt_tokens"]
    assert images == (6 if has_images(processor) else 0)
    assert tokens > 20
    printed = capsys.readouterr().out
    prompt = f"{images} images, {tokens} tokens" if images else f"{tokens} tokens"
    assert f"largest difference of the logits on {prompt}:" in printed
    command = "make serve MODEL=" if re.match("Qwen.*VL", family.architecture) else "vllm serve "
    assert printed.endswith(f"serve it with: {command}{tmp_path / 'out'}\n")


def test_names_that_transformers_shortens_are_written_as_stock_vllm_expects_them(tmp_path: Path) -> None:
    write_family(tmp_path / "gained", find_family("LlavaOnevisionForConditionalGeneration"), SHARED)
    assert main(["fold", str(tmp_path / "gained"), str(tmp_path / "out")]) == 0
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as tensors:
        names = {name for name in tensors.keys() if "vision_tower" in name}  # noqa: SIM118 (not a dictionary)
    assert names
    assert all(name.startswith("model.vision_tower.vision_model.") for name in names)


@pytest.mark.parametrize("name", ["Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"])
def test_partial_folds_the_static_factor_and_keeps_the_slope(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model, processor = write_family(tmp_path / "gained", find_family(name), GROWING)

    assert main(["fold", str(tmp_path / "gained"), str(tmp_path / "out"), "--partial"]) == 0

    folded = rope_gain.load_pretrained(tmp_path / "out")
    inputs = tiny_inputs(processor, images=(3,))
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(folded, inputs), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    kept, old = rope_gain.gain_modules(folded), rope_gain.gain_modules(model)
    assert kept.keys() == old.keys()
    for number, gain in kept.items():
        assert not gain.query_a.any()
        assert torch.equal(gain.query_b, old[number].query_b)
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {"laid.safetensors"}
    assert (
        f"keeps the gains that do not fold; serve it, with this package, by: make serve MODEL={tmp_path / 'out'}\n"
        in (capsys.readouterr().out)
    )
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert f"is not shown; it is still in {tmp_path / 'gained'}\n" in capsys.readouterr().out


def test_partial_makes_a_stock_checkpoint_where_everything_folds(gained: Path, folded: Path, tmp_path: Path) -> None:
    assert main(["fold", str(gained), str(tmp_path / "out"), "--partial"]) == 0
    assert weights_sha256(tmp_path / "out") == weights_sha256(folded)
    assert (tmp_path / "out" / "config.json").read_bytes() == (folded / "config.json").read_bytes()


def refusal(capsys: pytest.CaptureFixture[str], source: Path, out: Path, *options: str) -> str:
    assert main(["fold", str(source), str(out), *options]) == 1
    # After the bars that transformers draws.
    return capsys.readouterr().err.splitlines()[-1]


def test_gains_that_depend_on_the_position_are_refused(
    write_gained: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gained(tmp_path / "gained", RopeGainConfig(position="log"), torch.float32)
    message = refusal(capsys, tmp_path / "gained", tmp_path / "out")
    assert message.startswith(f"distill: {tmp_path / 'gained'}/config.json: rope_gain.position: got 'log'")
    assert message.endswith(
        "train with 'position: static' instead; --partial folds the static factor and keeps the rest"
    )
    assert not (tmp_path / "out").exists()


def test_what_a_partial_fold_left_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_family(tmp_path / "gained", find_family("Qwen2ForCausalLM"), GROWING)
    assert main(["fold", str(tmp_path / "gained"), str(tmp_path / "partial"), "--partial"]) == 0
    for options in ([], ["--partial"]):
        message = refusal(capsys, tmp_path / "partial", tmp_path / "out", *options)
        assert message.endswith("train with 'position: static' instead")
    assert "no part of the gains folds" in message


@pytest.mark.parametrize("options", [[], ["--partial"]], ids=["whole", "partial"])
def test_gains_per_head_behind_a_norm_are_refused_before_the_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    write_family(tmp_path / "gained", find_family("Qwen3VLForConditionalGeneration"), STATIC)

    message = refusal(capsys, tmp_path / "gained", tmp_path / "out", *options)
    reason = "rope_gain.granularity: got 'layer_head_frequency', expected 'layer' or 'layer_frequency' to fold"
    # Only what reads no weights names the file.
    assert message.startswith(f"distill: {tmp_path / 'gained'}/config.json: ")
    assert reason in message
    assert message.endswith("train with 'granularity: layer_frequency' and 'position: static' instead")
    assert not (tmp_path / "out").exists()


def test_a_folded_checkpoint_is_refused_with_where_its_gains_are(
    gained: Path, folded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, folded, tmp_path / "out")
    assert message.endswith(f"; its gains were folded into its weights and are still in {gained}")


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
