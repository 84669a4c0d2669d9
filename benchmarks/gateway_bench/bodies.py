"""Requests with images of the size that the targets speak of: 1024x1024 JPEG of about 216 KB."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

IMAGE_BYTES = 216_000
SIDE = 1024


def make_images(count: int) -> list[bytes]:
    """Different images: smooth colours with noise, at the quality that comes next to `IMAGE_BYTES`."""
    rng = np.random.default_rng(0)
    first = _pixels(rng)
    quality = min(range(30, 96), key=lambda q: abs(len(_jpeg(first, q)) - IMAGE_BYTES))
    return [_jpeg(_pixels(rng), quality) for _ in range(count)]


def image_part(image: bytes) -> dict[str, Any]:
    """An image as a data URL."""
    url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def file_part(file_id: str) -> dict[str, Any]:
    """An uploaded image by its id."""
    return {"type": "image_url", "image_url": {"file_id": file_id}}


def make_body(images: list[bytes], *, model: str, stream: bool = False, text: str = "What is there?") -> bytes:
    """A chat request with the images, then the text."""
    parts = [image_part(image) for image in images]
    content: Any = [*parts, {"type": "text", "text": text}] if parts else text
    return _body([{"role": "user", "content": content}], model, stream)


def make_turns(parts: list[dict[str, Any]], *, model: str, text: str) -> bytes:
    """A second turn, whose text alone differs."""
    first = {"role": "user", "content": [*parts, {"type": "text", "text": "What is there?"}]}
    turns = [first, {"role": "assistant", "content": "a blue square"}, {"role": "user", "content": text}]
    return _body(turns, model, False)


def _body(messages: list[dict[str, Any]], model: str, stream: bool) -> bytes:
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    if stream:
        body["stream"] = True
    return json.dumps(body, separators=(",", ":")).encode()


def _pixels(rng: np.random.Generator) -> Image.Image:
    smooth = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    noise = rng.normal(0, 14, (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
