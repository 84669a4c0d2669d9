"""The whole verb, on gains that are known."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import rope_gain
from distill.checkpoint import laid_record, write_laid
from distill.cli import main
from distill.evaluate.curve import CurvePoint
from distill.evaluate.report import Evaluation
from distill.evaluate.window import Window
from rope_gain import RopeGainConfig
from rope_gain.families import find_family
from tests.rope_gain.models import HEAD_SIZE, NUM_HEADS, NUM_KEY_VALUE_HEADS, build_tiny

NUM_PAIRS = HEAD_SIZE // 2
STATIC = RopeGainConfig(position="static")
GROWING = RopeGainConfig(target="query_key", position="log", reference_length=16)
PER_HEAD = RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="log", reference_length=16)


def write(folder: Path, config: RopeGainConfig, name: str = "Qwen2_5_VLForConditionalGeneration") -> dict[int, Any]:
    """A checkpoint whose log gains are, in every layer l and pair i, a = (l + 1)·(i - 5)/100 and b = i/50; in keys
    half of that; and in head h plus h/10."""
    model, _ = build_tiny(find_family(name))
    rope_gain.attach(model, config)
    for layer, gain in rope_gain.gain_modules(model).items():
        for tensor_name, parameter in gain.named_parameters():
            heads, pairs = (torch.arange(size) for size in parameter.shape)
            value = (layer + 1) * (pairs - 5) / 100 if tensor_name.endswith("a") else pairs / 50
            half = 2 if tensor_name.startswith("key") else 1
            parameter.data.copy_(value / half + (heads[:, None] / 10 if tensor_name.endswith("a") else 0))
    rope_gain.save_pretrained(model, folder)
    return rope_gain.gain_modules(model)


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def inspect_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(inspect(capsys, *arguments, "--json"))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_gains_of_each_layer_and_pair_at_the_start_and_at_a_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, GROWING)

    found = inspect_json(capsys, tmp_path, "--at", 48)

    assert [position["value"] for position in found["positions"]] == [0, 48]
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    for layer, pair in ((0, 0), (1, 7), (1, 15)):
        a, b = (layer + 1) * (pair - 5) / 100, pair / 50
        query = [math.exp(a), math.exp(a + b * math.log(1 + 48 / 16))]
        by_side = found["layers"][layer]["pairs"]
        for at in (0, 1):
            assert by_side["query"]["mean"][at][pair] == pytest.approx(query[at], rel=1e-5)
            assert by_side["key"]["mean"][at][pair] == pytest.approx(query[at] ** 0.5, rel=1e-5)
            assert by_side["query·key"]["mean"][at][pair] == pytest.approx(query[at] ** 1.5, rel=1e-5)
            assert by_side["query"]["heads_apart"][at][pair] == 1


def test_the_gains_of_a_layer_and_of_a_band_are_geometric_means_with_their_extremes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, STATIC)

    found = inspect_json(capsys, tmp_path)

    assert [position["name"] for position in found["positions"]] == ["any position"]
    [layer_1] = found["layers"][1]["gains"]["query"]
    # The pairs' log gains are -0.10 to 0.20.
    assert layer_1 == pytest.approx({"mean": math.exp(0.05), "least": math.exp(-0.1), "largest": math.exp(0.2)})
    # 2π·10000^(i/16) is 6.3, 11.2, 19.9, 35.3, 62.8 (i = 4, the first of height), 111.7 ... 35k.
    bands = [(band["axis"], band["wavelength"], band["pairs"]) for band in found["bands"]]
    assert bands == [
        ("time", [1, 10], 1),
        ("time", [10, 100], 3),
        ("height", [10, 100], 1),
        ("height", [100, 1000], 4),
        ("height", [1000, 10000], 1),
        ("width", [1000, 10000], 3),
        ("width", [10000, 100000], 3),
    ]
    # Pairs 1 to 3: (i - 5)/100 in layer 0 and twice that in layer 1.
    [band] = found["bands"][1]["gains"]["query"]
    assert band == pytest.approx({"mean": math.exp(-0.045), "least": math.exp(-0.08), "largest": math.exp(-0.02)})


def test_gains_per_head_are_averaged_and_their_spread_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, PER_HEAD)

    [layer, _] = inspect_json(capsys, tmp_path, "--at", 48)["layers"]

    # Heads 0 to 3 add 0, 0.1, 0.2 and 0.3; the two key heads 0 and 0.1, each beside two query heads.
    assert (NUM_HEADS, NUM_KEY_VALUE_HEADS) == (4, 2)
    query, product = layer["pairs"]["query"], layer["pairs"]["query·key"]
    assert query["mean"][0][5] == pytest.approx(math.exp(0.15))
    assert query["heads_apart"][1] == pytest.approx([math.exp(np.std([0, 0.1, 0.2, 0.3]))] * NUM_PAIRS, rel=1e-5)
    assert layer["pairs"]["key"]["mean"][0][5] == pytest.approx(math.exp(0.05))
    assert product["mean"][0][5] == pytest.approx(math.exp(0.2))
    assert product["heads_apart"][0][5] == pytest.approx(math.exp(np.std([0, 0.1, 0.3, 0.4])))


def test_the_tables_show_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, PER_HEAD)

    printed = inspect(capsys, tmp_path, "--at", 48)

    lines = [" ".join(line.split()) for line in printed.splitlines()]
    name = "Qwen2_5_VLForConditionalGeneration"
    assert lines[0] == f"{tmp_path}: {name}, one gain per layer, head and frequency, g = exp(a + b·log1p(m/16))"
    assert "m = 48: the position asked for" in lines
    # Pair 0: a is -0.05 and -0.1 in the layers, plus 0 to 0.3 in the heads; b is 0.
    assert "time 1 - 10 1 query 1.08 (0.90 - 1.3) 1.08 (0.90 - 1.3)" in lines
    assert "layer gain m = 0 m = 48 heads apart" in lines
    assert "0 query 1.19 (0.95 - 1.5) 1.47 (0.95 - 2.3) 1.12" in lines
    assert "query·key 1.27 (0.93 - 1.7) 1.73 (0.93 - 3.2) 1.17" in lines


def test_layers_without_a_gain_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, RopeGainConfig(position="static", layers=(1,)))
    assert [layer["layer"] for layer in inspect_json(capsys, tmp_path)["layers"]] == [1]


def test_weights_are_not_needed_and_shards_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, GROWING)
    whole = inspect_json(capsys, tmp_path)
    tensors = load_file(tmp_path / "laid.safetensors")
    (tmp_path / "laid.safetensors").unlink()
    gains = {name: tensor for name, tensor in tensors.items() if ".rope_gain." in name}
    names = sorted(gains)
    weight_map = {}
    for number, part in ((1, names[:3]), (2, names[3:])):
        file = f"laid-0000{number}-of-00002.safetensors"
        save_file({name: gains[name] for name in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "laid.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    assert inspect_json(capsys, tmp_path) == whole


def test_without_a_measured_window_gains_are_shown_at_the_last_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, GROWING, "Qwen3ForCausalLM")
    assert inspect_json(capsys, tmp_path)["positions"] == [
        {"name": "m = 0", "value": 0, "meaning": "the start of the prompt"},
        {"name": "m = 1023", "value": 1023, "meaning": "the last position that the model is made for"},
    ]


@pytest.mark.parametrize(
    ("tokens", "position"), [pytest.param(370.0, 370, id="measured"), pytest.param(0.0, 1023, id="no_window")]
)
def test_gains_are_shown_at_the_end_of_the_measured_window(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: float, position: int
) -> None:
    write(tmp_path, GROWING)
    bounds = {f"{unit}{end}": tokens for unit in ("images", "tokens") for end in ("", "_low", "_high")}
    evaluation = Evaluation(
        task="miniature/open",
        measured="local",
        seed=1,
        items_per_size=10,
        points=tuple(
            CurvePoint(images=images, prompt_tokens=tokens, items=10, correct=5, compliant=10)
            for images, tokens in ((1, 10.0), (50, 400.0))
        ),
        windows=(Window(threshold=0.6, kind="absolute", censored=False, **bounds),),
    )
    write_laid(tmp_path, laid_record("student") | {"effective_window": evaluation.to_dict()})

    assert inspect_json(capsys, tmp_path)["positions"][1]["value"] == position


def test_the_figure_is_blue_below_1_and_red_above(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, STATIC)

    printed = inspect(capsys, tmp_path, "--figure", tmp_path / "gains.png")

    assert printed.endswith(f"wrote {tmp_path / 'gains.png'}\n")
    red, _, blue = np.moveaxis(pixels(tmp_path / "gains.png"), 2, 0)
    panel = np.arange(red.shape[1]) < 0.8 * red.shape[1]  # the rest is the colour bar
    where_red = np.argwhere((red > blue + 40) & panel)[:, 1]
    where_blue = np.argwhere((blue > red + 40) & panel)[:, 1]
    # a = (i - 5)/100: the short wavelengths, on the left, are damped.
    assert len(where_red) > 1000
    assert len(where_blue) > 1000
    assert where_blue.max() < where_red.min()


@pytest.mark.parametrize("config", [GROWING, PER_HEAD], ids=["shared", "per_head"])
@pytest.mark.parametrize("name", ["Qwen3VLForConditionalGeneration", "Qwen2ForCausalLM"])
def test_figures_of_every_layout_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, config: RopeGainConfig
) -> None:
    write(tmp_path, config, name)
    inspect(capsys, tmp_path, "--figure", tmp_path / "gains.png")
    height, width, _ = pixels(tmp_path / "gains.png").shape
    # Two positions, and the spread of gains per head.
    assert width > (1900 if config == PER_HEAD else 1300)
    assert height > 600


def test_gains_that_are_all_1_are_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = build_tiny(find_family("Qwen2ForCausalLM"))
    rope_gain.attach(model, PER_HEAD)
    rope_gain.save_pretrained(model, tmp_path)
    assert "1.00 (1.0 - 1.0)" in inspect(capsys, tmp_path, "--figure", tmp_path / "gains.png")


def test_a_stock_checkpoint_is_refused(
    model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = model_folders["base"]
    message = (
        f"distill: {stock}: a stock checkpoint without gains, expected one with gains, as 'distill train' writes it\n"
    )
    assert refusal(capsys, stock, "--figure", tmp_path / "gains.png") == message
    assert not (tmp_path / "gains.png").exists()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path / "nothing") in refusal(capsys, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--figure", "gains.pdf"], "--figure: gains.pdf, expected a name that ends in .png", id="pdf"),
        pytest.param(["--at", "-1"], "--at: -1, expected a position above 0", id="negative"),
        pytest.param(["--at", "9"], "--at: 9, but these gains are static: the same at every position", id="static"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write(tmp_path, STATIC)
    assert refusal(capsys, tmp_path, *options) == f"distill: {message}\n"
