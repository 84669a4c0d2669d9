"""Asks vLLM for the prompts of conversations and for its cache; a script, so that vLLM has a process of its own.

Usage: python engine_worker.py JOB.json RESULT.json

JOB: {"folders": {name: folder of a checkpoint}, "conversations": [messages]}
RESULT: {name: {"prompts": [ids of each prompt's tokens], "cache": {
    "tokens": as vLLM logs them, "blocks", "block_tokens", "bytes": of the tensors that it allocated}}}
"""

import json
import sys
from pathlib import Path
from typing import Any

from rope_gain import wheel_guard

wheel_guard.install()

from vllm import LLM, SamplingParams  # noqa: E402
from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    for name, folder in job["folders"].items():
        results[name] = ask(folder, job["conversations"])
        cleanup_dist_env_and_memory()
    Path(sys.argv[2]).write_text(json.dumps(results))


def ask(folder: str, conversations: list[Any]) -> dict[str, Any]:
    """In a function of its own, so that the engine is gone before the next one starts."""
    engine = LLM(
        folder,
        load_format="dummy",  # no answer is looked at
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 8, "video": 0},
        seed=0,
    )
    config = engine.llm_engine.vllm_config.cache_config
    (allocated,) = engine.collective_rpc(cache_bytes)
    outputs = engine.chat(
        conversations, SamplingParams(max_tokens=1), use_tqdm=False, chat_template_content_format="openai"
    )
    return {
        "prompts": [list(output.prompt_token_ids) for output in outputs],
        "cache": {
            "tokens": config.kv_cache_size_tokens,
            "blocks": config.num_gpu_blocks,
            "block_tokens": config.block_size,
            "bytes": allocated,
        },
    }


def cache_bytes(worker: Any) -> int:
    """Of all layers' tensors, each piece of memory once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in worker.model_runner.kv_caches
    }
    return sum(storage.nbytes() for storage in storages.values())


if __name__ == "__main__":
    main()
