"""The mixed load: who asks for what, and how often."""

import asyncio
import base64
import contextlib
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from soak_bench.client import Ask, Client

MODEL = "miniature"
NUM_IMAGES, POOL_IMAGES, SIDE = 100, 160, 384
LONG_TOKENS = 4000
"""Of an answer that is left: far more than are generated meanwhile."""
PATIENCE_SECONDS = 2.0
"""At most, before one who was told to come back does so."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Of the clients."""

    usual: str
    limited: str
    """Allows fewer requests than its client sends."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """One client, who asks again after each answer and a pause."""

    asks: Iterator[Ask]
    pause_seconds: float
    """On average."""
    leaves: bool = False


def make_callers(keys: Keys, seed: int = 0, *, side: int = SIDE) -> list[Caller]:
    """Everybody who asks at the same time.

    Args:
        side: of the images, in pixels.
    """
    pool = make_pool(POOL_IMAGES, side)
    chance = random.Random(seed)

    def repeat(make: Callable[[random.Random], Ask], pause_seconds: float, *, leaves: bool = False) -> Caller:
        own = random.Random(chance.random())
        return Caller(asks=iter(lambda: make(own), None), pause_seconds=pause_seconds, leaves=leaves)

    return [
        *(repeat(lambda chance: chat(chance, keys.usual), 0.2) for _ in range(3)),
        *(repeat(lambda chance: stream(chance, keys.usual, pool), 0.3) for _ in range(2)),
        repeat(lambda chance: long_stream(chance, keys.usual), 1.0),
        repeat(lambda chance: many_images(chance, keys.usual, pool), 1.0),
        repeat(lambda chance: leaver(chance, keys.usual), 0.5, leaves=True),
        repeat(lambda chance: bad(chance, keys.usual), 0.3),
        repeat(lambda chance: over_its_limit(chance, keys.limited), 0.5),
        repeat(status, 0.5),
    ]


async def run(caller: Caller, client: Client, *, until: asyncio.Event, calm: asyncio.Lock, seed: int) -> None:
    """Asks until the event; whoever leaves does not while `calm` is held."""
    chance = random.Random(seed)
    for ask in caller.asks:
        async with calm if caller.leaves else contextlib.nullcontext():
            response = await client.ask(ask)
        pause = chance.expovariate(1 / caller.pause_seconds)
        if response is not None and "retry-after" in response.headers:
            pause += min(PATIENCE_SECONDS, float(response.headers["retry-after"]))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), pause)
        if until.is_set():
            return


def chat(chance: random.Random, key: str) -> Ask:
    """A few words, answered at once."""
    return Ask(kind="chat", body=_body(_words(chance), max_tokens=chance.randrange(1, 24)), key=key)


def stream(chance: random.Random, key: str, pool: Sequence[str]) -> Ask:
    """Some images and a question, answered as a stream."""
    content = [*_parts(chance.sample(pool, chance.randrange(5))), {"type": "text", "text": _words(chance)}]
    return Ask(kind="stream", body=_body(content, max_tokens=64, stream=True), key=key, is_stream=True)


def long_stream(chance: random.Random, key: str) -> Ask:
    """One of those that an engine's end cuts in two."""
    body = _body(_words(chance), max_tokens=800, stream=True, ignore_eos=True)
    return Ask(kind="long stream", body=body, key=key, is_stream=True)


def many_images(chance: random.Random, key: str, pool: Sequence[str], *, count: int = NUM_IMAGES) -> Ask:
    """As a stream or not."""
    is_stream = chance.random() < 0.5
    content = [*_parts(chance.sample(pool, count)), {"type": "text", "text": _words(chance)}]
    body = _body(content, max_tokens=8, stream=is_stream)
    return Ask(kind=f"{count} images", body=body, key=key, is_stream=is_stream)


def leaver(chance: random.Random, key: str) -> Ask:
    """A long answer, left in its middle or before it comes."""
    is_stream = chance.random() < 0.7
    body = _body(_words(chance), max_tokens=LONG_TOKENS, stream=is_stream, ignore_eos=True)
    if is_stream:
        return Ask(kind="leaves", body=body, key=key, is_stream=True, leave_events=chance.randrange(1, 30))
    return Ask(kind="leaves", body=body, key=key, leave_seconds=chance.uniform(0.2, 0.6))


def bad(chance: random.Random, key: str) -> Ask:
    """Something that must be refused."""
    broken = base64.b64encode(b"\x89PNG\r\n\x1a\n" + chance.randbytes(40)).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{broken}"}}
    asks = (
        Ask(kind="bad", body=b'{"model": ', key=key),
        Ask(kind="bad", body=_body("hello", model="other"), key=key),
        Ask(kind="bad", body=_body([image]), key=key),
        Ask(kind="bad", body=_body("hello", chat_template="x"), key=key),
        Ask(kind="bad", body=_body("hello", temperature="hot"), key=key),
        Ask(kind="bad", body=_body("word " * 40_000), key=key),
        Ask(kind="bad", body=_body(_words(chance)), key="sk-nobody"),
        Ask(kind="bad", body=_body(_words(chance))),
        Ask(kind="bad", body=b"{}", key=key, path=f"/v1/{chance.randrange(10**6)}", route="other"),
    )
    return chance.choice(asks)


def over_its_limit(chance: random.Random, key: str) -> Ask:
    """More often than this key may."""
    return Ask(kind="limited", body=_body(_words(chance), max_tokens=2), key=key)


def status(chance: random.Random) -> Ask:
    """What probes ask."""
    path = chance.choice(("/health", "/ready", "/metrics"))
    return Ask(kind="probe", method="GET", path=path)


def make_pool(count: int, side: int) -> list[str]:
    """Different images as data URLs; about 33 KB each with sides of 384 pixels."""
    rng = np.random.default_rng(0)
    urls = []
    for _ in range(count):
        smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        noisy = np.clip(np.asarray(smooth) + rng.normal(0, 8, (side, side, 1)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=80)
        urls.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    return urls


def _parts(urls: Sequence[str]) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": url}} for url in urls]


def _words(chance: random.Random) -> str:
    return " ".join(chance.choices(("red", "blue", "circle", "square", "is", "there", "a", "?"), k=12))


def _body(content: Any, *, model: str = MODEL, **parameters: Any) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": model, "messages": messages, **parameters}).encode()
