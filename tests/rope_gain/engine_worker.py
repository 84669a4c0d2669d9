"""Runs vLLM over checkpoints and writes down what it says; a script, so that vLLM has a process of its own.

Usage: python engine_worker.py JOB.json RESULT

JOB: {"max_tokens", "runs": {name: {"folder", "prompts": [{"text", "images": [path]}], "compiled", "hf_overrides"}}}
RESULT.json: {name: [{"prompt_ids", "prompt_logprobs", "tokens", "logprobs"} for each prompt] or {"error": text}}
RESULT.safetensors: "{name}.{prompt}.{layer}.query" and ".key", [T, heads, D], as they enter the layer's attention
and its key-value cache.
"""

import json
import sys
from pathlib import Path
from typing import Any

from rope_gain import wheel_guard

wheel_guard.install()

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    rotations: dict[str, torch.Tensor] = {}
    for name, run in job["runs"].items():
        try:
            results[name], recorded = attempt(run, job["max_tokens"])
            rotations |= {f"{name}.{place}": tensor for place, tensor in recorded.items()}
        except (ValueError, RuntimeError) as error:
            results[name] = {"error": str(error)}
        finally:
            cleanup_dist_env_and_memory()
    Path(f"{sys.argv[2]}.json").write_text(json.dumps(results))
    save_file(rotations, f"{sys.argv[2]}.safetensors")


def attempt(run: dict[str, Any], max_tokens: int) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """In a function of its own, so that the engine is gone before the next one starts."""
    engine = make_engine(run)
    prompts = [make_prompt(prompt) for prompt in run["prompts"]]
    return answer(engine, prompts, max_tokens), record(engine, prompts)


def make_prompt(prompt: dict[str, Any]) -> Any:
    if not prompt["images"]:
        return prompt["text"]
    images = [Image.open(path).convert("RGB") for path in prompt["images"]]
    return {"prompt": prompt["text"], "multi_modal_data": {"image": images}}


def make_engine(run: dict[str, Any]) -> LLM:
    has_images = any(prompt["images"] for prompt in run["prompts"])
    return LLM(
        run["folder"],
        dtype="float32",
        enforce_eager=not run["compiled"],
        hf_overrides=run["hf_overrides"],
        max_model_len=1024,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 8, "video": 0} if has_images else None,
        enable_prefix_caching=False,
        seed=0,
    )


def answer(engine: LLM, prompts: list[Any], max_tokens: int) -> list[dict[str, Any]]:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, prompt_logprobs=0, logprobs=0)
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    return [
        {
            "prompt_ids": list(output.prompt_token_ids),
            # Nothing precedes the first token, so it has no log-probability.
            "prompt_logprobs": logprobs_of(output.prompt_token_ids[1:], output.prompt_logprobs[1:]),
            "tokens": list(output.outputs[0].token_ids),
            "logprobs": logprobs_of(output.outputs[0].token_ids, output.outputs[0].logprobs),
        }
        for output in outputs
    ]


def logprobs_of(token_ids: list[int], logprobs: list[dict[int, Any]]) -> list[float]:
    return [entry[token].logprob for token, entry in zip(token_ids, logprobs, strict=True)]


def record(engine: LLM, prompts: list[Any]) -> dict[str, torch.Tensor]:
    """Each layer's query and key in the prefill of each prompt, by "{prompt}.{layer}.query" and ".key".

    Taken from the attention's implementation, which vLLM calls from within an operator that no compiler sees:
    whatever was fused before it has happened.
    """
    engine.apply_model(start_recording)
    for prompt in prompts:
        engine.generate(prompt, SamplingParams(max_tokens=1), use_tqdm=False)
    [recorded] = engine.apply_model(lambda model: model.recorded)
    return recorded


def start_recording(model: Any) -> None:
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.models.utils import extract_layer_index

    model.recorded = {}
    for module in model.modules():
        if isinstance(module, Attention):
            watch(module.impl, extract_layer_index(module.layer_name), model.recorded)


def watch(implementation: Any, layer: int, recorded: dict[str, torch.Tensor]) -> None:
    """Wraps the two methods that the query and the key pass through."""
    counts = {"query": 0, "key": 0}

    def keep(side: str, tensor: torch.Tensor) -> None:
        recorded[f"{counts[side]}.{layer}.{side}"] = tensor.clone()
        counts[side] += 1

    forward, update = implementation.forward, implementation.do_kv_cache_update

    def recorded_forward(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keep("query", query)
        return forward(module, query, *args, **kwargs)

    def recorded_update(module: Any, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keep("key", key)
        return update(module, key, *args, **kwargs)

    implementation.forward, implementation.do_kv_cache_update = recorded_forward, recorded_update


if __name__ == "__main__":
    main()
