"""Conversations with images of many sizes, in many places of the text."""

import base64
import io
import random
from typing import Any

from PIL import Image

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
