"""A plan's figures against transformers' own configurations, safetensors' own reader, and arithmetic by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from server.checkpoint import CheckpointError
from server.families import ProcessorFiles, read_processor_files
from server.media.images import ImageSize
from server.planning.decoder import read_decoder
from server.planning.plan import Options, make_plan
from server.planning.room import GIB, Room, make_room
from server.planning.weights import read_weights
from tests.rope_gain.models import TINY, tokenizer_of
from tests.server.families.folder import write_folder

ROOT = Path(__file__).parents[3]
CHECKPOINTS = ROOT / "distill" / "miniature" / "checkpoints"
SHAPES = ROOT / "distill" / "recipes" / "shapes"
FAMILIES = [name for name in TINY if "ForConditionalGeneration" in name]


def files_of(config: dict[str, Any]) -> ProcessorFiles:
    return ProcessorFiles(
        path=Path("model"), config=config, processor={}, image_processor={}, image_source="", tokenizer={}
    )


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_decoder_is_transformers_own(architecture: str, tmp_path: Path) -> None:
    processor = TINY[architecture].make_processor()
    config = TINY[architecture].make_config(tokenizer_of(processor))
    write_folder(processor, config, tmp_path)
    text = config.get_text_config()

    shape = read_decoder(read_processor_files(tmp_path))

    assert shape.num_layers == text.num_hidden_layers
    assert (shape.num_heads, shape.num_key_value_heads) == (text.num_attention_heads, text.num_key_value_heads)
    assert shape.head_size == (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    assert shape.sliding_window is None


@pytest.mark.parametrize(
    ("model", "token_bytes"),
    [
        ("Qwen--Qwen2.5-VL-3B-Instruct", 36 * 2 * 2 * 128 * 2),
        ("Qwen--Qwen2.5-VL-7B-Instruct", 28 * 2 * 4 * 128 * 2),
        ("Qwen--Qwen2.5-VL-32B-Instruct", 64 * 2 * 8 * 128 * 2),
        ("Qwen--Qwen3-VL-8B-Instruct", 36 * 2 * 8 * 128 * 2),
        ("OpenGVLab--InternVL3-8B-hf", 28 * 2 * 4 * 128 * 2),
    ],
)
def test_a_published_models_token_in_bfloat16(model: str, token_bytes: int) -> None:
    shape = read_decoder(files_of(json.loads((SHAPES / f"{model}.json").read_text())))

    assert shape.token_bytes(2) == token_bytes
    assert shape.token_bytes(1) == token_bytes // 2


def test_text_sizes_may_stand_beside_the_vision_tower() -> None:
    config = json.loads((SHAPES / "Qwen--Qwen2.5-VL-7B-Instruct.json").read_text())
    flat = {key: value for key, value in config.items() if key != "text_config"} | config["text_config"]

    assert read_decoder(files_of(flat)) == read_decoder(files_of(config))


def test_gpus_share_heads_and_hold_a_whole_one_at_least() -> None:
    shape = read_decoder(files_of(json.loads((SHAPES / "Qwen--Qwen2.5-VL-7B-Instruct.json").read_text())))

    assert [4 * shape.token_bytes(2, n) // shape.token_bytes(2) for n in (1, 2, 4, 8)] == [4, 2, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": None}, "num_key_value_heads None; expected a positive number"),
        ({"hidden_size": ...}, "key 'hidden_size' is missing"),
        ({"head_dim": ...}, "key 'head_dim' is missing"),
    ],
)
def test_a_size_that_is_missing_is_named(change: dict[str, Any], message: str) -> None:
    config = json.loads((SHAPES / "Qwen--Qwen3-VL-8B-Instruct.json").read_text())
    text = config["text_config"] | change
    config["text_config"] = {key: value for key, value in text.items() if value is not ...}

    with pytest.raises(CheckpointError, match=message):
        read_decoder(files_of(config))


def test_weights_are_those_that_safetensors_finds() -> None:
    path = CHECKPOINTS / "teacher" / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - no dictionary

    weights = read_weights(path.parent)

    assert weights.stored_bytes == sum(tensor.nbytes for tensor in tensors)
    assert weights.loaded_bytes("bfloat16") == 2 * sum(tensor.numel() for tensor in tensors)
    assert weights.loaded_bytes("float32") == weights.stored_bytes


def test_files_that_the_index_does_not_name_are_left_out_and_quantised_tensors_stay(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5, dtype=torch.bfloat16)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(7, dtype=torch.int8)}, tmp_path / "model-2.safetensors")
    save_file({"a": torch.zeros(3, 5)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    weights = read_weights(tmp_path)

    assert (weights.stored_bytes, weights.loaded_bytes("float32")) == (30 + 7, 60 + 7)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no \\*.safetensors"), (b"\xff" * 64, "is not JSON"), (b"", "is not JSON")]
)
def test_a_folder_without_readable_weights_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path)


@given(
    num_bytes=st.integers(-(2**34), 2**40),
    token_bytes=st.integers(1, 2**20),
    block_tokens=st.sampled_from((1, 16, 128)),
    tokens=st.integers(1, 2**20),
)
def test_what_fits_is_all_that_fits(num_bytes: int, token_bytes: int, block_tokens: int, tokens: int) -> None:
    room = Room(num_bytes=num_bytes, token_bytes=token_bytes, block_tokens=block_tokens)

    assert room.tokens * token_bytes <= max(0, num_bytes)
    assert max(0, num_bytes) < (room.tokens + block_tokens) * token_bytes
    assert room.requests(tokens) * tokens <= room.tokens
    assert (room.requests(tokens) + 1) * (tokens + block_tokens) > room.tokens


def test_a_gpus_cache_is_its_share_less_weights_and_reserve() -> None:
    room = make_room(memory_gib=80, utilization=0.9, reserve_gib=4, weight_bytes=15 * GIB, token_bytes=57344)

    assert room.num_bytes == (72 - 4 - 15) * GIB
    assert make_room(memory_gib=16, utilization=0.9, reserve_gib=4, weight_bytes=15 * GIB, token_bytes=1).tokens == 0


def test_an_fp8_cache_and_more_gpus_hold_more() -> None:
    def plan(**options: Any) -> int:
        return make_plan(CHECKPOINTS / "teacher", Options(**options)).room(24).tokens

    usual = plan()
    assert plan(kv_dtype="fp8") == pytest.approx(2 * usual, rel=1e-6)
    assert plan(tensor_parallel=2) > 2 * usual
    # Two heads of keys: of four GPUs, two hold the same.
    assert plan(tensor_parallel=4) == pytest.approx(plan(tensor_parallel=2), rel=1e-3)
    assert plan(dtype="float32") < usual / 2


def test_the_plan_knows_the_checkpoints_own_lengths_and_images() -> None:
    plan = make_plan(CHECKPOINTS / "teacher", Options(images=(ImageSize(width=64, height=48),)))

    assert set(plan.lengths()) == {"context length", "effective window"}
    assert plan.lengths()["context length"] == 2048
    assert plan.checkpoint.image_rule.count(plan.options.images[0]) == 4 * 3


def test_gpus_that_cannot_share_the_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="--tensor-parallel 3: expected a number that divides the model's 4"):
        make_plan(CHECKPOINTS / "teacher", Options(tensor_parallel=3))
