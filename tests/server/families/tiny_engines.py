"""What vLLM makes of a tiny checkpoint of each family, asked in one process for all of them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.rope_gain.models import TINY, tokenizer_of
from tests.server.families.conversations import conversations
from tests.server.families.folder import write_folder

WORKER = Path(__file__).with_name("engine_worker.py")
TEACHER = Path(__file__).parents[3] / "distill" / "miniature" / "checkpoints" / "teacher"
"""A Qwen2.5-VL, which the others are not."""
ARCHITECTURES = (
    "Qwen2VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
)
CACHE_GIB = 1


@dataclass(frozen=True, kw_only=True)
class TinyEngine:
    """One checkpoint, and what an engine that serves it says."""

    folder: Path
    prompts: list[list[int]]
    """Tokens of each of `conversations()`."""
    cache: dict[str, int]
    """Of keys and values: "tokens", "blocks", "block_tokens", "bytes"."""


def start_tiny_engines(root: Path) -> dict[str, TinyEngine]:
    """One for each architecture, by its name, and the miniature's "teacher"; writes into `root`."""
    from safetensors.torch import save_file
    from torch import zeros

    folders = {"teacher": TEACHER}
    for architecture in ARCHITECTURES:
        processor = TINY[architecture].make_processor()
        config = TINY[architecture].make_config(tokenizer_of(processor))
        config.architectures = [architecture]
        folder = folders[architecture] = root / architecture
        write_folder(processor, config, folder)
        # Weights of nothing but a size.
        save_file({"weight": zeros(1)}, folder / "model.safetensors")
    found = _ask(folders, root)
    return {name: TinyEngine(folder=folder, **found[name]) for name, folder in folders.items()}


def _ask(folders: dict[str, Path], root: Path) -> dict[str, dict[str, object]]:
    job, result = root / "job.json", root / "result.json"
    folder_names = {name: str(folder) for name, folder in folders.items()}
    job.write_text(json.dumps({"folders": folder_names, "conversations": conversations()}))
    settings = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    with (root / "log").open("w+") as log:
        done = subprocess.run(
            [sys.executable, WORKER, job, result], env=os.environ | settings, stdout=log, stderr=log, check=False
        )
        log.seek(0)
        assert done.returncode == 0, log.read()[-5000:]
    return dict(json.loads(result.read_text()))
