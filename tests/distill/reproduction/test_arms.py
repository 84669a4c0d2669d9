"""Every row of the experiment is a recipe that loads, and differs from full LAid in what its title says."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import distill
from distill.config import load_config
from distill.recipe import Recipe
from distill.reproduction.arms import ARMS, Arm

RECIPE = Path(distill.__file__).parent / "reproduction" / "laid.yaml"
TRAINED = [arm for arm in ARMS if arm.is_trained]


def load(arm: Arm) -> Recipe:
    return load_config(Recipe, RECIPE, arm.overrides)


def budget(recipe: Recipe) -> Any:
    """What must be equal for every row: its steps and samples."""
    return recipe.train, dataclasses.replace(recipe.data, stretch=None), recipe.student


@pytest.mark.parametrize("arm", TRAINED, ids=lambda arm: arm.name)
def test_all_have_the_same_budget_and_data_of_2_to_20_images(arm: Arm) -> None:
    assert budget(load(arm)) == budget(load_config(Recipe, RECIPE))
    miniature = load(arm).data.miniature
    assert miniature is not None
    assert [(size.least, size.most) for size in miniature.sizes] == [(2, 20)]


def test_the_rows_of_the_issue_are_there() -> None:
    arms = {arm.name: arm for arm in ARMS}
    assert len(arms) == len(ARMS)
    assert not load(arms["sft"]).loss.needs_teacher
    assert load(arms["sft"]).gain is None
    assert load(arms["sft-gain"]).gain is not None
    assert load(arms["logits"]).loss.alignment_weight + load(arms["logits"]).loss.matching_weight == 0
    assert load(arms["no-kl"]).loss.lambda_kl == 0
    assert load(arms["no-matching"]).loss.matching_weight == 0
    assert load(arms["no-weighting"]).loss.matching.gamma_max == 0
    assert load(arms["no-gain"]).gain is None
    static = load(arms["static"]).gain
    assert static is not None
    assert static.position == "static"
    assert arms["static"].is_folded
    assert load(arms["laid"]) == load_config(Recipe, RECIPE)


@pytest.mark.parametrize("arm", TRAINED, ids=lambda arm: arm.name)
def test_only_those_that_say_so_are_stretched(arm: Arm) -> None:
    is_plain = arm.name in ("sft", "sft-gain", "logits", "no-stretch")
    assert (load(arm).data.stretch is None) == is_plain
