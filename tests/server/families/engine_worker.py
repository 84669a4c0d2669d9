"""Asks vLLM for the prompts of conversations; a script, so that vLLM has a process of its own.

Usage: python engine_worker.py JOB.json RESULT.json

JOB: {folder of a checkpoint: [messages of a conversation]}
RESULT: {folder: [ids of the prompt's tokens]}
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
    for folder, conversations in job.items():
        results[folder] = prompt_ids(folder, conversations)
        cleanup_dist_env_and_memory()
    Path(sys.argv[2]).write_text(json.dumps(results))


def prompt_ids(folder: str, conversations: list[Any]) -> list[list[int]]:
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
    outputs = engine.chat(
        conversations, SamplingParams(max_tokens=1), use_tqdm=False, chat_template_content_format="openai"
    )
    return [list(output.prompt_token_ids) for output in outputs]


if __name__ == "__main__":
    main()
