import signal

import pytest
import torch
from torch import nn

from distill.miniature.phase import Schedule, run_phase

SCHEDULE = Schedule(steps=30, learning_rate=0.1, warmup_steps=5, decay_steps=10)


def train(file, stop_at=None):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def step_loss(step, progress):
        progress["seen"] += step
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (model(inputs) - inputs.sum(-1, keepdim=True)).square().mean()

    progress = {"seen": 0.0}
    run_phase("test", SCHEDULE, model, step_loss, progress, file)
    return model, progress


def test_a_stopped_and_resumed_phase_equals_an_unbroken_one_bit_for_bit(tmp_path):
    unbroken, seen = train(tmp_path / "unbroken.pt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped.pt", stop_at=17)
    resumed, seen_again = train(tmp_path / "stopped.pt")
    assert seen == seen_again == {"seen": sum(range(30))}
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))


def test_frozen_parameters_stay(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    run_phase("test", SCHEDULE, model, lambda _, __: model(torch.ones(1, 3)).sum(), {}, tmp_path / "state.pt")
    assert torch.equal(model.bias, before)


def test_the_learning_rate_rises_stays_and_falls():
    rates = [SCHEDULE.rate(step) for step in range(30)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[4:21] == [pytest.approx(0.1)] * 17
    assert rates[29] == pytest.approx(0.01)
    assert rates[:5] == sorted(rates[:5])
    assert rates[20:] == sorted(rates[20:], reverse=True)
