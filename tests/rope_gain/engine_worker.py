"""Runs vLLM over checkpoints and writes down what it says; a script, so that vLLM has a process of its own.

Usage: python engine_worker.py JOB.json RESULT.json

JOB: {"prompts": [{"text", "images": [path]}], "max_tokens", "runs": {name: {"folder", "compiled", "hf_overrides"}}}
RESULT: {name: [{"prompt_ids", "prompt_logprobs", "tokens", "logprobs"} for each prompt] or {"error": text}}
"""

import json
import sys
from pathlib import Path
from typing import Any

from rope_gain import wheel_guard

wheel_guard.install()

from PIL import Image  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    prompts = [
        {
            "prompt": prompt["text"],
            "multi_modal_data": {"image": [Image.open(path).convert("RGB") for path in prompt["images"]]},
        }
        for prompt in job["prompts"]
    ]
    results = {name: attempt(run, prompts, job["max_tokens"]) for name, run in job["runs"].items()}
    Path(sys.argv[2]).write_text(json.dumps(results))


def attempt(run: dict[str, Any], prompts: list[Any], max_tokens: int) -> Any:
    try:
        return answer(make_engine(run), prompts, max_tokens)
    except (ValueError, RuntimeError) as error:
        return {"error": str(error)}
    finally:
        cleanup_dist_env_and_memory()


def make_engine(run: dict[str, Any]) -> LLM:
    return LLM(
        run["folder"],
        dtype="float32",
        enforce_eager=not run["compiled"],
        hf_overrides=run["hf_overrides"],
        max_model_len=512,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 8, "video": 0},
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


if __name__ == "__main__":
    main()
