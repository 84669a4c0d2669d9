"""Runs vLLM in different layouts and writes down what it says; a script, so that vLLM has processes of its own.

Usage: python layouts_worker.py JOB.json RESULT.json, with a pipe as its standard input. When that closes, which
the end of the starting process does too, this process and those that vLLM started die.

JOB: {"prompts": {name: {"text", "images": [path]}}, "max_tokens",
      "runs": {name: {"folder", "engine": {argument of LLM: value}, "requests": [{"prompt", "adapter"}]}}}
RESULT: {name: {"processes": [`describe` of each process's part of the model], "answers": [`answer` of each request]}
        or {"error": text}}
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from rope_gain import wheel_guard

wheel_guard.install()

from PIL import Image  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402


def main() -> None:
    threading.Thread(target=die_with_the_parent, daemon=True).start()
    job = json.loads(Path(sys.argv[1]).read_text())
    results = {name: attempt(run, job) for name, run in job["runs"].items()}
    Path(sys.argv[2]).write_text(json.dumps(results))


def die_with_the_parent() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def attempt(run: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """One engine's life: the requests come one after the other, so that a later one can find the earlier's cache."""
    try:
        engine = make_engine(run)
    except (ValueError, RuntimeError) as error:
        return {"error": str(error)}
    try:
        return {
            "processes": engine.apply_model(describe),
            "answers": [answer(engine, request, job) for request in run["requests"]],
        }
    finally:
        engine.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def make_engine(run: dict[str, Any]) -> LLM:
    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 4,
        "max_logprobs": -1,
        "limit_mm_per_prompt": {"image": 8, "video": 0},
        "kv_cache_memory_bytes": 2**26,
        "enable_prefix_caching": False,
        "seed": 0,
    }
    return LLM(run["folder"], **defaults | run["engine"])


def describe(model: Any) -> dict[str, Any]:
    """What this process has of the model: the gain parameters' values and the modules that are elsewhere."""
    from vllm.model_executor.models.utils import PPMissingLayer

    gains = {"query_a", "query_b", "key_a", "key_b"}
    return {
        "gains": {
            name: parameter.tolist() for name, parameter in model.named_parameters() if name.split(".")[-1] in gains
        },
        "elsewhere": [name for name, module in model.named_modules() if isinstance(module, PPMissingLayer)],
    }


def answer(engine: LLM, request: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens, what the whole vocabulary's log-probabilities were before each, and how the engine got there."""
    prompt = job["prompts"][request["prompt"]]
    adapter = request.get("adapter")
    # vLLM does not read its prefix cache for a request that asks for its prompt's log-probabilities.
    cached = engine.llm_engine.vllm_config.cache_config.enable_prefix_caching
    engine.llm_engine.add_request(
        "request",
        {
            "prompt": prompt["text"],
            "multi_modal_data": {"image": [Image.open(path).convert("RGB") for path in prompt["images"]]},
        },
        SamplingParams(
            temperature=0.0,
            max_tokens=job["max_tokens"],
            ignore_eos=True,
            logprobs=-1,
            prompt_logprobs=None if cached else 0,
        ),
        lora_request=None if adapter is None else LoRARequest("adapter", 1, adapter),
    )
    num_steps = 0
    while engine.llm_engine.has_unfinished_requests():
        num_steps += 1
        outputs = engine.llm_engine.step()
    [output] = outputs
    [completion] = output.outputs
    result = {
        "prompt_ids": list(output.prompt_token_ids),
        "tokens": list(completion.token_ids),
        "logprobs": [[entry[token].logprob for token in sorted(entry)] for entry in completion.logprobs],
        "num_cached_tokens": output.num_cached_tokens,
        "num_steps": num_steps,
    }
    if not cached:
        # Nothing precedes the first token, so it has no log-probability.
        result["prompt_logprobs"] = [
            entry[token].logprob
            for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        ]
    return result


if __name__ == "__main__":
    main()
