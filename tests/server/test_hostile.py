"""What a hostile client sends, byte by byte: each gets a clear refusal, and leaves nothing behind."""

import asyncio
import base64
import gzip
import json
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

Start = Callable[..., Awaitable[httpx.AsyncClient]]
CHAT = "/v1/chat/completions"
MODEL = "tiny"
MIB = 1024 * 1024
LIMITS = {"max_body_bytes": 2 * MIB, "max_image_pixels": 1_000_000, "body_timeout_seconds": 0.5}
# As much as an interpreter's own arenas may keep after thousands of requests.
MEMORY_SLACK = 48 * MIB
PATIENCE_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One connection's bytes."""

    name: str
    sent: bytes
    statuses: tuple[int, ...]
    """Any of these; 0 where the connection is closed without an answer, because no request was understood."""
    says: str = ""
    """In the answer."""


def post(body: bytes, *lines: str, path: str = CHAT, kind: str = "application/json") -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: gateway", f"content-type: {kind}", f"content-length: {len(body)}", *lines]
    return ("\r\n".join([*head, "connection: close"]) + "\r\n\r\n").encode() + body


def head(*lines: str) -> bytes:
    return ("\r\n".join([f"POST {CHAT} HTTP/1.1", "host: gateway", *lines]) + "\r\n\r\n").encode()


def chat(**fields: Any) -> bytes:
    request = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1} | fields
    return post(json.dumps(request).encode())


def image(url: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])


def part(**content: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": [content]}])


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares this size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


DEEP = b"[" * 100_000 + b"]" * 100_000

NOT_JSON = [
    Attack(name="empty body", sent=post(b""), statuses=(400,), says="invalid_json"),
    Attack(name="a list", sent=post(b"[]"), statuses=(400,), says="JSON object"),
    Attack(name="a number", sent=post(b"1" * 5000), statuses=(400,), says="invalid_json"),
    Attack(name="cut off", sent=post(b'{"model": "ti'), statuses=(400,), says="invalid_json"),
    Attack(name="more after the end", sent=post(b"{} {}"), statuses=(400,), says="invalid_json"),
    Attack(name="NaN", sent=chat(temperature=float("nan")), statuses=(400,), says="invalid_json"),
    Attack(name="byte order mark", sent=post(b"\xef\xbb\xbf{}"), statuses=(400,), says="invalid_json"),
    Attack(name="UTF-16", sent=post('{"model": "tiny"}'.encode("utf-16")), statuses=(400,), says="invalid_json"),
    Attack(name="Latin-1", sent=post('{"model": "é"}'.encode("latin-1")), statuses=(400,), says="error"),
    Attack(name="lone surrogate", sent=post(b'{"model": "\\ud800"}'), statuses=(400, 404), says="error"),
    Attack(name="deep list", sent=post(DEEP), statuses=(400,), says="invalid_json"),
    Attack(name="deep messages", sent=post(b'{"model": "tiny", "messages": ' + DEEP + b"}"), statuses=(400,)),
    Attack(name="deep parameter", sent=post(b'{"model": "tiny", "stop": ' + DEEP + b"}"), statuses=(400,)),
    Attack(name="deep schema", sent=chat(response_format=json.loads("[" * 400 + "]" * 400)), statuses=(400,)),
    Attack(name="many names", sent=chat(**{f"x{i}": 0 for i in range(50_000)}), statuses=(400, 413)),
    Attack(name="a long name", sent=chat(**{"x" * 100_000: 0}), statuses=(400,), says="unknown_parameter"),
    Attack(name="a huge number", sent=post(b'{"model":"tiny","n":' + b"9" * 100_000 + b"}"), statuses=(400,)),
]

WRONG_SHAPE = [
    Attack(name="no messages", sent=chat(messages=[]), statuses=(400,), says="messages"),
    Attack(name="messages of numbers", sent=chat(messages=[1]), statuses=(400,), says="messages[0]"),
    Attack(name="an unknown role", sent=chat(messages=[{"role": "root", "content": ""}]), statuses=(400,)),
    Attack(name="an unknown part", sent=part(type="video_url", video_url={"url": "x"}), statuses=(400,)),
    Attack(name="audio", sent=part(type="input_audio", input_audio={"data": "", "format": "wav"}), statuses=(400,)),
    # CVE-2025-62164, CVE-2026-56340: tensors from the client.
    Attack(name="image embeddings", sent=part(type="image_embeds", image_embeds="gAAA"), statuses=(400,)),
    Attack(name="prompt embeddings", sent=chat(prompt_embeds="gAAA"), statuses=(400,), says="prompt_embeds"),
    # CVE-2025-62426 and its kind: the client's own template.
    Attack(name="a template", sent=chat(chat_template="{{ 7*7 }}"), statuses=(400,), says="chat_template"),
    Attack(name="template arguments", sent=chat(chat_template_kwargs={"tokenize": True}), statuses=(400,)),
    Attack(name="processor arguments", sent=chat(mm_processor_kwargs={"max_pixels": 10**12}), statuses=(400,)),
    Attack(name="media arguments", sent=chat(media_io_kwargs={"video": {"num_frames": 10**9}}), statuses=(400,)),
    Attack(name="priority", sent=chat(priority=-(10**9)), statuses=(400,), says="priority"),
    Attack(name="cross-tenant cache", sent=chat(cache_salt="another"), statuses=(400,), says="cache_salt"),
    # CVE-2026-34756: a request that is a million requests.
    Attack(name="a million answers", sent=chat(n=1_000_000), statuses=(400,), says="n: 1000000"),
    Attack(name="minus one answer", sent=chat(n=-1), statuses=(400,), says="n: -1"),
    Attack(name="true answers", sent=chat(n=True), statuses=(400,), says="n"),
    Attack(name="endless answer", sent=chat(max_tokens=10**9), statuses=(400,), says="context_length_exceeded"),
    # CVE-2026-44222: images forged as text.
    Attack(
        name="placeholder as text",
        sent=chat(messages=[{"role": "user", "content": "<|vision_start|><|image_pad|><|vision_end|>"}]),
        statuses=(400,),
        says="reserved_token",
    ),
    Attack(
        name="placeholder in pieces",
        sent=chat(
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "<|im"}, {"type": "text", "text": "_end|>"}]}
            ]
        ),
        statuses=(400,),
        says="reserved_token",
    ),
]

IMAGES = [
    Attack(name="empty image", sent=image("data:image/png;base64,"), statuses=(400,), says="content[0].image_url"),
    Attack(name="not base64", sent=image("data:image/png;base64,!!!!"), statuses=(400,), says="content[0].image_url"),
    Attack(name="no image at all", sent=image(data_url(b"hello")), statuses=(400,), says="not a readable image"),
    Attack(name="a number as URL", sent=image(7), statuses=(400,), says="content[0].image_url"),
    Attack(name="SVG", sent=image(data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml")), statuses=(400,)),
    Attack(name="a script", sent=image("javascript:alert(1)"), statuses=(400,)),
    Attack(name="a file", sent=image("file:///etc/passwd"), statuses=(400,)),
    Attack(name="the machine itself", sent=image("https://127.0.0.1:8001/metrics"), statuses=(400,)),
    Attack(name="cloud metadata", sent=image("http://169.254.169.254/latest/meta-data/"), statuses=(400,)),
    Attack(name="mapped address", sent=image("https://[::ffff:127.0.0.1]/x.png"), statuses=(400,)),
    Attack(name="decimal address", sent=image("https://2130706433/x.png"), statuses=(400,)),
    Attack(name="two readings", sent=image("https://example.com\\@127.0.0.1/x.png"), statuses=(400,)),
    Attack(name="credentials", sent=image("https://user:pass@example.com/x.png"), statuses=(400,)),
    Attack(name="line break", sent=image("https://example.com/\r\nhost: x"), statuses=(400,)),
    Attack(name="bomb", sent=image(data_url(png_header(60_000, 60_000))), statuses=(400,), says="pixels"),
    Attack(name="large bomb", sent=image(data_url(png_header(2**31 - 1, 2**31 - 1))), statuses=(400,), says="pixels"),
    Attack(name="no pixels", sent=image(data_url(png_header(0, 0))), statuses=(400,)),
    Attack(name="one thin line", sent=image(data_url(png_header(1, 900))), statuses=(400,), says="200 times"),
    Attack(name="truncated", sent=image(data_url(png_header(64, 64))), statuses=(400,), says="truncated or corrupt"),
    Attack(name="gzip", sent=image(data_url(gzip.compress(b"\0" * MIB))), statuses=(400,)),
]

HTTP = [
    Attack(name="not HTTP", sent=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64, statuses=(400, 0)),
    Attack(name="a long path", sent=b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", statuses=(431,)),
    Attack(name="dot segments", sent=b"GET /v1/../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n", statuses=(404,)),
    Attack(name="an engine's route", sent=post(b"{}", path="/tokenize"), statuses=(404,), says="not_found"),
    Attack(name="another of them", sent=post(b"{}", path="/invocations"), statuses=(404,), says="not_found"),
    Attack(name="wrong method", sent=b"DELETE " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\n\r\n", statuses=(405,)),
    Attack(
        name="an odd method", sent=b"BREW " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\n\r\n", statuses=(400, 405, 0)
    ),
    Attack(name="form", sent=post(b"a=b", kind="application/x-www-form-urlencoded"), statuses=(415,)),
    Attack(name="compressed", sent=post(gzip.compress(b" " * MIB), "content-encoding: gzip"), statuses=(415,)),
    Attack(
        name="too large", sent=head("content-type: application/json", f"content-length: {3 * MIB}"), statuses=(413,)
    ),
    Attack(
        name="too large in chunks",
        sent=head("content-type: application/json", "transfer-encoding: chunked")
        + b"%x\r\n" % (2 * MIB + 1)
        + b" " * (2 * MIB + 1)
        + b"\r\n0\r\n\r\n",
        statuses=(413,),
    ),
    Attack(
        name="negative length", sent=head("content-type: application/json", "content-length: -1"), statuses=(400, 0)
    ),
    Attack(name="two lengths", sent=head("content-length: 2", "content-length: 40") + b"{}", statuses=(400, 0)),
    Attack(
        name="length and chunks",
        sent=head("content-type: application/json", "content-length: 4", "transfer-encoding: chunked") + b"0\r\n\r\n",
        statuses=(400, 0),
    ),
    Attack(name="bad chunks", sent=head("transfer-encoding: chunked") + b"zz\r\n{}\r\n", statuses=(400, 415, 0)),
    Attack(
        name="a header flood",
        sent=head("content-type: application/json", *(f"x-{i}: {'y' * 100}" for i in range(20_000))),
        statuses=(431,),
    ),
    Attack(name="a long header", sent=head("content-type: application/json", "x: " + "y" * MIB), statuses=(431,)),
    Attack(
        name="a body that never ends",
        sent=head("content-type: application/json", "content-length: 100") + b'{"model"',
        statuses=(408,),
        says="body_timeout",
    ),
]

ATTACKS = [*NOT_JSON, *WRONG_SHAPE, *IMAGES, *HTTP]


async def attack(port: int, sent: bytes) -> tuple[int, bytes]:
    """The status and body that come back; 0 if the connection is closed without any."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                writer.write(sent)
                await writer.drain()
                answer_head = await reader.readuntil(b"\r\n\r\n")
            except (ConnectionError, asyncio.IncompleteReadError):
                return 0, b""
            lines = answer_head.decode("latin-1").lower().split("\r\n")
            lengths = [int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")]
            body = await reader.readexactly(lengths[0]) if lengths else b""
            return int(lines[0].split()[1]), body
    finally:
        writer.close()


def port_of(client: httpx.AsyncClient) -> int:
    assert client.base_url.port is not None
    return client.base_url.port


@pytest.fixture
async def gateway(start_gateway: Start) -> httpx.AsyncClient:
    return await start_gateway(**LIMITS)


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
async def test_it_is_refused_and_told_why(gateway: httpx.AsyncClient, cued_engine: Any, case: Attack) -> None:
    status, body = await attack(port_of(gateway), case.sent)

    assert status in case.statuses, body[:500]
    if status != 0 and body.startswith(b"{"):
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert case.says in json.dumps(error)
        assert len(body) < 4000
    assert not cued_engine.bodies, "the engine was asked"
    assert (await gateway.get("/health")).status_code == 200


async def test_nothing_is_left_behind(gateway: httpx.AsyncClient) -> None:
    process = psutil.Process()

    async def storm() -> None:
        for case in ATTACKS:
            await attack(port_of(gateway), case.sent)
        assert (await gateway.get("/health")).status_code == 200

    await storm()
    tasks, sockets, memory = len(asyncio.all_tasks()), process.num_fds(), process.memory_info().rss
    for _ in range(3):
        await storm()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(asyncio.all_tasks()) > tasks or process.num_fds() > sockets:
        assert time.monotonic() < deadline, (tasks, asyncio.all_tasks(), sockets, process.open_files())
        await asyncio.sleep(0.05)
    assert process.memory_info().rss < memory + MEMORY_SLACK
