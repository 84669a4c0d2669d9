from pathlib import Path

import pytest

import distill
from distill.config import load_config
from distill.recipe import Recipe

MINIATURE = Path(distill.__file__).parent / "recipes" / "miniature.yaml"


def test_the_miniature_recipe_loads_and_uses_every_part_of_the_loss() -> None:
    recipe = load_config(Recipe, MINIATURE)
    assert recipe.gain is not None
    assert recipe.loss.matching_weight > 0
    assert recipe.loss.alignment_weight > 0
    assert recipe.loss.lambda_kl > 0
    assert recipe.loss.lambda_sft > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher=null", "teacher: missing, expected a model"),
        ("loss.lambda_sft=-1", "loss.lambda_sft: -1.0, expected at least 0"),
        ("loss.temperature=0", "loss.temperature: 0.0, expected above 0"),
        ("loss.matching.layers=[]", "loss.matching.layers: empty, expected at least one entry"),
        ("loss.matching.distance=time", "loss.matching.distance: 'time', expected one of token, position, image"),
        ("gain.granularity=head", "gain.granularity: 'head', expected one of layer, layer_frequency"),
        ("data.miniature.open_share=2", "data.miniature.open_share: 2.0, expected a share from 0 to 1"),
        ("data.jsonl.path=x.jsonl", "data.jsonl: 2 sources, expected exactly one of the blocks miniature, jsonl"),
        ("data.miniature=null", "data.miniature: 0 sources, expected exactly one of the blocks miniature, jsonl"),
        ("data.webdataset.shards=[]", "data.webdataset.shards: empty, expected at least one entry"),
        ("data.on_bad_sample=ignore", "data.on_bad_sample: 'ignore', expected one of fatal, skip"),
        ("data.max_tokens_per_sample=0", "data.max_tokens_per_sample: 0, expected at least 1"),
        ("data.images.max_pixels=0", "data.images.max_pixels: 0, expected at least 1"),
        ("data.images.url_hosts=[a.org]", "data.images.url_cache: expected a folder together with url_hosts"),
        ("data.images.url_cache=x", "data.images.url_cache: expected a folder together with url_hosts"),
        ("train.steps=0", "train.steps: 0, expected at least 1"),
        ("data.mix_lengths=true", "data.mix_lengths: true without train.packing, expected both"),
        ("train.attention=eager", "train.attention: 'eager', expected one of sdpa, flash_attention_2, flex_attention"),
        ("train.attention=flash_attention_2", "train.mixed_precision: 'no' with a float32 student, expected 'bf16'"),
    ],
)
def test_wrong_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Recipe, MINIATURE, [override])


def test_a_teacher_that_nothing_looks_at_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher: given, expected none"):
        load_config(Recipe, MINIATURE, ["loss.lambda_kl=0", "loss.lambda_laid=0"])


def test_flash_attention_wants_a_teacher_in_half_precision() -> None:
    overrides = ["train.attention=flash_attention_2", "train.mixed_precision=bf16"]
    with pytest.raises(ValueError, match=r"teacher.dtype: 'float32', expected 'bfloat16'"):
        load_config(Recipe, MINIATURE, overrides)
    recipe = load_config(Recipe, MINIATURE, [*overrides, "teacher.dtype=bfloat16"])
    assert recipe.train.attention == "flash_attention_2"


def test_no_loss_at_all_is_refused() -> None:
    overrides = ["loss.lambda_kl=0", "loss.lambda_laid=0", "loss.lambda_sft=0"]
    with pytest.raises(ValueError, match="at least one lambda above 0"):
        load_config(Recipe, MINIATURE, overrides)
