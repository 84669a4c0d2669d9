"""The plan's bytes of a token against the cache that the real engine makes, in every family: one process for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.planning.plan import Options, make_plan
from server.planning.room import GIB, Room
from tests.rope_gain.models import TINY, tokenizer_of
from tests.server.families.folder import write_folder

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("engine_worker.py")
TEACHER = ROOT / "distill" / "miniature" / "checkpoints" / "teacher"
# The teacher is a Qwen2.5-VL.
ARCHITECTURES = (
    "Qwen2VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
)
CACHE_GIB = 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint's folder of each family, with weights of nothing but a size."""
    from safetensors.torch import save_file
    from torch import zeros

    root = tmp_path_factory.mktemp("families")
    for architecture in ARCHITECTURES:
        processor = TINY[architecture].make_processor()
        config = TINY[architecture].make_config(tokenizer_of(processor))
        config.architectures = [architecture]
        write_folder(processor, config, root / architecture)
        save_file({"weight": zeros(1)}, root / architecture / "model.safetensors")
    return {"teacher": TEACHER, **{architecture: root / architecture for architecture in ARCHITECTURES}}


@pytest.fixture(scope="module")
def caches(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What the engine says of its cache, by folder's name."""
    root = tmp_path_factory.mktemp("engine")
    job, result = root / "job.json", root / "result.json"
    job.write_text(json.dumps([str(folder) for folder in folders.values()]))
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
    found = json.loads(result.read_text())
    return {name: found[str(folder)] for name, folder in folders.items()}


@pytest.mark.parametrize("name", ["teacher", *ARCHITECTURES])
def test_the_cache_is_the_engines(folders: dict[str, Path], caches: dict[str, dict[str, int]], name: str) -> None:
    plan, cache = make_plan(folders[name], Options(dtype="float32")), caches[name]
    room = Room(num_bytes=CACHE_GIB * GIB, token_bytes=plan.gpu_token_bytes, block_tokens=cache["block_tokens"])

    assert (room.num_blocks, room.tokens) == (cache["blocks"], cache["tokens"])
    # What the engine allocates is whole blocks: less than one is left over of what it was given.
    assert room.tokens * plan.token_bytes == cache["bytes"]
    assert 0 <= CACHE_GIB * GIB - cache["bytes"] < room.block_tokens * plan.token_bytes
