from pathlib import Path

import pytest
import torch

import rope_gain
from distill.mixing import SoftmaxMixing
from distill.optimizer import make_optimizer, set_learning_rates
from distill.recipe import TrainConfig
from rope_gain import RopeGainConfig


def test_every_trained_parameter_is_in_one_group_with_its_rate(model_folders: dict[str, Path]) -> None:
    model = rope_gain.load_pretrained(model_folders["base"])
    rope_gain.attach(model, RopeGainConfig())
    model.base_model.visual.requires_grad_(False)
    config = TrainConfig(steps=10, warmup_steps=1, model_lr=1.0, gain_lr=2.0, mixing_lr=4.0, weight_decay=0.5)
    optimizer = make_optimizer(model, SoftmaxMixing(2, 4), config)
    set_learning_rates(optimizer, 0, config)
    groups = {(group["lr"], group["weight_decay"]): group["params"] for group in optimizer.param_groups}
    assert set(groups) == {(0.5, 0.5), (0.5, 0.0), (1.0, 0.0), (2.0, 0.0)}
    assert len(groups[1.0, 0.0]) == 4
    assert all(parameter.ndim >= 2 for parameter in groups[0.5, 0.5])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grouped = [parameter for key in groups if key != (2.0, 0.0) for parameter in groups[key]]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in trained}
    assert len(grouped) == len(trained)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.5), (1, 1.0)])
def test_rates_follow_the_schedule(step: int, factor: float) -> None:
    config = TrainConfig(steps=10, warmup_steps=1, model_lr=3.0)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), SoftmaxMixing(1, 1), config)
    set_learning_rates(optimizer, step, config)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3.0 * factor)
