import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from rope_gain import RopeGainConfig, attach, gain_modules, load_pretrained, save_pretrained

PREFIX = "model.language_model.layers.1.self_attn.rope_gain"
CONFIGS = [
    pytest.param(RopeGainConfig(granularity="layer", position="static"), id="layer-query-static"),
    pytest.param(RopeGainConfig(granularity="layer_frequency", target="query_key"), id="frequency-query_key-log"),
    pytest.param(
        RopeGainConfig(granularity="layer_head_frequency", target="query_key", layers=(1,)),
        id="head-query_key-log-one_layer",
    ),
]


@pytest.fixture
def gained_model(model, randomize):
    attach(model, RopeGainConfig(granularity="layer_head_frequency", target="query_key"))
    randomize(model)
    return model


@pytest.fixture
def folder(gained_model, tmp_path):
    save_pretrained(gained_model, tmp_path)
    return tmp_path


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_round_trip_keeps_every_bit(model, make_inputs, randomize, tmp_path, config):
    inputs = make_inputs(images=(3,))
    attach(model, config)
    randomize(model)

    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)

    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert {gain.config for gain in gain_modules(loaded).values()} == {config}
    assert loaded.generation_config.pad_token_id == model.generation_config.pad_token_id


def test_gains_attached_to_a_loaded_model_are_saved_beside_its_weights(model, make_inputs, randomize, tmp_path):
    inputs = make_inputs(images=(2,))
    save_pretrained(model, tmp_path / "stock")
    loaded = load_pretrained(tmp_path / "stock")
    attach(loaded, RopeGainConfig())
    randomize(loaded)

    save_pretrained(loaded, tmp_path / "gained")

    assert torch.equal(logits(load_pretrained(tmp_path / "gained"), inputs), logits(loaded, inputs))


def test_a_stock_checkpoint_loads_as_the_stock_model(model, make_inputs, tmp_path):
    save_pretrained(model, tmp_path)

    loaded = load_pretrained(tmp_path)

    assert type(loaded) is Qwen2_5_VLForConditionalGeneration
    assert (tmp_path / "model.safetensors").is_file()
    assert torch.equal(logits(loaded, make_inputs(images=(1,))), logits(model, make_inputs(images=(1,))))


def test_the_folder_is_stock_but_for_names_block_and_gains(gained_model, folder):
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "laid.safetensors")

    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "laid.safetensors",
    ]
    assert config["model_type"] == "qwen2_5_vl"
    assert config["architectures"] == ["LAidQwen2_5_VLForConditionalGeneration"]
    assert config["rope_gain"] == gain_modules(gained_model)[0].config.to_dict()
    assert "transformers_weights" not in config
    assert {name for name in stored if name.startswith(PREFIX)} == {
        f"{PREFIX}.{name}" for name in ("query_a", "query_b", "key_a", "key_b")
    }
    assert "lm_head.weight" not in stored  # tied to the embedding


def test_gains_stay_float32_in_a_bfloat16_model(gained_model, folder, tmp_path):
    loaded = load_pretrained(folder, dtype=torch.bfloat16)
    save_pretrained(loaded, tmp_path / "bfloat16")
    stored = load_file(tmp_path / "bfloat16" / "laid.safetensors")

    assert loaded.model.language_model.layers[1].self_attn.q_proj.weight.dtype == torch.bfloat16
    for layer, gain in gain_modules(loaded).items():
        for name, parameter in gain.named_parameters():
            original = gain_modules(gained_model)[layer].get_parameter(name)
            assert torch.equal(parameter, original)
            assert torch.equal(stored[f"model.language_model.layers.{layer}.self_attn.rope_gain.{name}"], original)


def test_shards_are_named_like_the_single_file(gained_model, make_inputs, tmp_path):
    gained_model.save_pretrained(tmp_path, max_shard_size="300KB")

    names = sorted(path.name for path in tmp_path.glob("*safetensors*"))

    assert names[0] == f"laid-00001-of-{len(names) - 1:05}.safetensors"
    assert names[-1] == "laid.safetensors.index.json"
    inputs = make_inputs(images=(1,))
    assert torch.equal(logits(load_pretrained(tmp_path), inputs), logits(gained_model, inputs))

    save_pretrained(gained_model, tmp_path)

    assert [path.name for path in tmp_path.glob("*safetensors*")] == ["laid.safetensors"]


@pytest.mark.parametrize("plain_class", [Qwen2_5_VLForConditionalGeneration, AutoModelForImageTextToText])
def test_plain_transformers_cannot_load_it(folder, plain_class):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        plain_class.from_pretrained(folder)


def test_the_model_s_own_method_writes_the_same_folder(gained_model, folder, tmp_path):
    gained_model.save_pretrained(tmp_path / "own")

    for name in ("config.json", "laid.safetensors"):
        assert (tmp_path / "own" / name).read_bytes() == (folder / name).read_bytes()


def test_a_missing_gain_is_refused(folder):
    stored = load_file(folder / "laid.safetensors")
    del stored[f"{PREFIX}.key_a"]
    save_file(stored, folder / "laid.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match=rf"{PREFIX}.key_a: got no such tensor, expected shape \[2, 16\]"):
        load_pretrained(folder)


def test_a_gain_of_another_shape_is_refused_with_both(folder):
    stored = load_file(folder / "laid.safetensors")
    stored[f"{PREFIX}.query_b"] = torch.zeros(1, 16)
    save_file(stored, folder / "laid.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match=rf"{PREFIX}.query_b: got shape \[1, 16\], expected shape \[4, 16\]"):
        load_pretrained(folder)


def test_a_gain_that_the_configuration_leaves_out_is_refused(folder):
    edit_config(folder, rope_gain={"granularity": "layer_head_frequency", "target": "query_key", "layers": [0]})

    with pytest.raises(ValueError, match=rf"{PREFIX}.key_a: got shape \[2, 16\], expected no such tensor"):
        load_pretrained(folder)


def test_a_misspelt_configuration_is_refused(folder):
    edit_config(folder, rope_gain={"granularty": "layer"})

    with pytest.raises(ValueError, match="the nearest known one is 'granularity'"):
        load_pretrained(folder)


def test_an_architecture_and_a_block_that_disagree_are_refused(folder):
    edit_config(folder, architectures=["Qwen2_5_VLForConditionalGeneration"])

    with pytest.raises(ValueError, match="Qwen2_5_VLForConditionalGeneration goes without a rope_gain block"):
        load_pretrained(folder)


def test_an_unsupported_architecture_is_refused(folder):
    edit_config(folder, architectures=["LlamaForCausalLM"])

    with pytest.raises(ValueError, match="got 'LlamaForCausalLM', expected one with support for gains"):
        load_pretrained(folder)


def test_two_kinds_of_weights_do_not_share_a_folder(make_model, gained_model, folder, tmp_path):
    save_pretrained(make_model(), tmp_path / "stock")

    with pytest.raises(ValueError, match=r"laid\.safetensors holds another checkpoint's weights"):
        save_pretrained(make_model(), folder)
    with pytest.raises(ValueError, match=r"model\.safetensors holds another checkpoint's weights"):
        save_pretrained(gained_model, tmp_path / "stock")


def test_uploading_under_the_stock_name_is_refused(gained_model, tmp_path):
    with pytest.raises(ValueError, match="push_to_hub: not supported"):
        gained_model.save_pretrained(tmp_path, push_to_hub=True)
