"""The gain's cost in PyTorch, in training's terms: one attention layer with and without, forward and backward.

On a GPU the layer has Qwen2.5-VL-7B's shapes over 32k tokens in bfloat16, timed by CUDA events. On a CPU, and with
--quick, it is a small one, which shows that the code runs and says nothing about a GPU.
"""

# ruff: noqa: E402 (the path comes before the project's own packages)
import sys
from pathlib import Path

# Beside this file is one with the name of the package that it measures.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from benchmarks.common import Row, describe_machine, paired_ratios, parse_arguments, ratio_row, report
from rope_gain import RopeGainConfig, attach, gain_modules, wheel_guard

wheel_guard.install()

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

STOCK, AGAIN = "stock", "stock again"
GAINS = {
    "static": RopeGainConfig(granularity="layer_frequency", target="query", position="static"),
    "log": RopeGainConfig(granularity="layer_frequency", target="query"),
    "log, per head": RopeGainConfig(granularity="layer_head_frequency", target="query_key"),
}
WARM_UP_ROUNDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One attention layer and what it reads."""

    modes: tuple[str, ...] = ("eager", "compiled")
    hidden_size: int = 3584
    num_heads: int = 28
    num_key_value_heads: int = 4
    num_tokens: int = 32768
    num_rounds: int = 30


SMALL = Shape(hidden_size=512, num_heads=4, num_key_value_heads=2, num_tokens=512, num_rounds=20)
QUICK = Shape(modes=("eager",), hidden_size=256, num_heads=2, num_key_value_heads=1, num_tokens=64, num_rounds=4)


def main() -> None:
    arguments = parse_arguments(__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = QUICK if arguments.quick else Shape() if device.type == "cuda" else SMALL
    decoders = {name: build_decoder(shape, GAINS.get(name), device) for name in (STOCK, AGAIN, *GAINS)}
    inputs = make_inputs(shape, device)
    rows = []
    for mode in shape.modes:
        if mode == "compiled":
            compile_each(decoders)
        for phase, step in (("forward", forward), ("forward and backward", forward_and_backward)):
            seconds = take_turns(decoders, lambda decoder, step=step: step(decoder, inputs), shape.num_rounds, device)
            rows += rows_of(f"{mode}, {phase}", seconds)
    machine = describe_machine(["torch", "transformers"])
    machine |= {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "dtype": "torch.bfloat16"}
    machine |= dataclasses.asdict(shape) | {"threads": torch.get_num_threads(), "quick": arguments.quick}
    report(machine, rows, arguments.json)


def build_decoder(shape: Shape, gain: RopeGainConfig | None, device: torch.device) -> nn.Module:
    """A text decoder of one layer whose MLP is left out: norms, attention with its projections, residuals."""
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 512,
            "hidden_size": shape.hidden_size,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "max_position_embeddings": shape.num_tokens,
            "max_window_layers": 1,
            "use_cache": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": True,
            # Within the vocabulary, which is small here.
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        vision_config={"depth": 1, "hidden_size": 64, "num_heads": 2, "intermediate_size": 64},
        attn_implementation="sdpa",
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    if gain is not None:
        attach(model, gain)
        with torch.no_grad():
            for parameter in gain_modules(model)[0].parameters():
                parameter.normal_(0, 0.1)
    decoder: nn.Module = model.to(device, torch.bfloat16).model.language_model
    decoder.layers[0].mlp = nn.Identity()
    return decoder


def make_inputs(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """Embeddings [1, T, C] and the position of every token on M-RoPE's three axes, [3, 1, T]."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, shape.num_tokens, shape.hidden_size, generator=generator)
    positions = torch.arange(shape.num_tokens).expand(3, 1, -1).contiguous()
    return {
        "inputs_embeds": embeddings.to(device, torch.bfloat16).requires_grad_(),
        "position_ids": positions.to(device),
    }


def compile_each(decoders: dict[str, nn.Module]) -> None:
    """In place, whole graphs only: fallen back to eager, a layer would be measured under the wrong name."""
    # The decoders share their class's code, which is compiled for each of them with and without gradients.
    torch._dynamo.config.recompile_limit = 4 * len(decoders)
    for decoder in decoders.values():
        decoder.compile(fullgraph=True, dynamic=False)


@torch.no_grad()
def forward(decoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    decoder(**inputs, use_cache=False)


def forward_and_backward(decoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Gradients of the input, of the projections and of the gain."""
    for tensor in (*decoder.parameters(), inputs["inputs_embeds"]):
        tensor.grad = None
    output = decoder(**inputs, use_cache=False).last_hidden_state
    output.backward(torch.ones_like(output))


def take_turns(
    decoders: dict[str, Any], step: Callable[[Any], None], num_rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of one step of each a round, in random order; the first rounds warm up and do not count."""
    time_step = seconds_on_gpu if device.type == "cuda" else seconds_on_cpu
    generator = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for number in range(WARM_UP_ROUNDS + num_rounds):
        for name in generator.sample(list(decoders), len(decoders)):
            elapsed = time_step(step, decoders[name])
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(elapsed)
    return seconds


def seconds_on_gpu(step: Callable[[Any], None], decoder: Any) -> float:
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    step(decoder)
    ended.record()
    ended.synchronize()
    return started.elapsed_time(ended) / 1000


def seconds_on_cpu(step: Callable[[Any], None], decoder: Any) -> float:
    started = time.perf_counter()
    step(decoder)
    return time.perf_counter() - started


def rows_of(title: str, seconds: dict[str, list[float]]) -> list[Row]:
    """Every gain against the mean of the two stock layers in the same round, and these against each other."""
    stock = [statistics.fmean(pair) for pair in zip(seconds[STOCK], seconds[AGAIN], strict=True)]
    noise = paired_ratios(seconds[STOCK], seconds[AGAIN])
    rows = [Row(name=f"{title}: stock", value=1000 * statistics.median(stock), unit="ms a step")]
    rows.append(ratio_row(f"{title}: stock against stock", noise))
    return rows + [ratio_row(f"{title}: {name}", paired_ratios(stock, seconds[name])) for name in GAINS]


if __name__ == "__main__":
    main()
