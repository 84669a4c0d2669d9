"""The count of whole conversations against the real engine's prompts, for every family: one process for them."""

import base64
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image, ImageOps

from server.checkpoint import read_checkpoint
from server.media.images import ImageSize
from server.prompt.prompt_counter import PromptCounter
from server.requests.conversation import Conversation, Message
from tests.rope_gain.models import TINY, tokenizer_of
from tests.server.families.folder import write_folder

pytestmark = pytest.mark.engine

WORKER = Path(__file__).with_name("engine_worker.py")
# Qwen2.5-VL is the whole server's own test model.
ARCHITECTURES = (
    "Qwen2VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
)
# Few images, many, none; the smallest, the flattest, ties between grids; text between, before and after.
SIZES = [
    [],
    [(1, 1)],
    [(64, 64)],
    [(1, 200)],
    [(200, 1)],
    [(31, 33), (100, 50)],
    [(50, 100), (96, 96), (64, 65)],
    [(40, 40), (150, 30), (33, 150), (70, 61), (17, 90), (128, 64), (64, 128), (200, 199)],
]
TURNED = 6  # EXIF orientation: lying on its side, which swaps width and height


def image_part(width: int, height: int, orientation: int = 1) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, height % 256, 7)).save(buffer, "PNG", exif=exif)
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()},
    }


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def conversations() -> list[list[dict[str, Any]]]:
    chance = random.Random(0)
    made = []
    for sizes in SIZES:
        parts = [image_part(*size) for size in sizes]
        for word in ("What else is there?\n", " ", "red circle"):
            parts.insert(chance.randrange(len(parts) + 1), text_part(word))
        made.append([{"role": "system", "content": "be kind"}, {"role": "user", "content": parts}])
    turn = [{"role": "user", "content": [image_part(120, 40, TURNED), text_part("a")]}]
    return [*made, turn, [*turn, {"role": "assistant", "content": "b"}, *turn]]


def size_of(part: dict[str, Any]) -> ImageSize:
    content = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    width, height = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).size
    return ImageSize(width=width, height=height)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for architecture in ARCHITECTURES:
        processor = TINY[architecture].make_processor()
        config = TINY[architecture].make_config(tokenizer_of(processor))
        config.architectures = [architecture]
        write_folder(processor, config, root / architecture)
    return {architecture: root / architecture for architecture in ARCHITECTURES}


@pytest.fixture(scope="module")
def prompts(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """The engine's prompt for each conversation, by architecture."""
    root = tmp_path_factory.mktemp("engine")
    job, result = root / "job.json", root / "result.json"
    job.write_text(json.dumps({str(folder): conversations() for folder in folders.values()}))
    settings = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    with (root / "log").open("w+") as log:
        done = subprocess.run(
            [sys.executable, WORKER, job, result], env=os.environ | settings, stdout=log, stderr=log, check=False
        )
        log.seek(0)
        assert done.returncode == 0, log.read()[-5000:]
    found = json.loads(result.read_text())
    return {architecture: found[str(folder)] for architecture, folder in folders.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_count_is_the_engines(
    folders: dict[str, Path], prompts: dict[str, list[list[int]]], architecture: str
) -> None:
    checkpoint = read_checkpoint(folders[architecture])
    counter = PromptCounter(checkpoint)
    tokenizer = tokenizer_of(TINY[architecture].make_processor())
    placeholder = tokenizer.convert_tokens_to_ids(checkpoint.image_rule.placeholder)
    for messages, ids in zip(conversations(), prompts[architecture], strict=True):
        sizes = [size_of(part) for message in messages for part in message["content"] if "image_url" in part]

        count = counter.count(
            Conversation(messages=msgspec.json.decode(json.dumps(messages), type=list[Message]), name="messages"),
            sizes,
        )

        assert count.prompt_tokens == len(ids), sizes
        # A start and an end around each image of InternVL are the image's own.
        around = len(checkpoint.image_rule.tokens) - 1
        assert count.total_image_tokens - around * len(sizes) == ids.count(placeholder)
        starts = [start + around // 2 for start in count.image_starts]
        assert [ids[start] for start in starts] == [placeholder] * len(sizes)
