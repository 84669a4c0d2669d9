"""Uploads on a real socket: OpenAI's own client, and forms that no client would send."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.traffic.caller import Limits
from server.traffic.new_key import add_key

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
FILES = "/v1/files"
HOUR = 3600


@pytest.fixture
async def make_client(start_gateway: Start) -> AsyncIterator[Callable[..., Awaitable[openai.AsyncOpenAI]]]:
    clients = []

    async def make(*, api_key: str = "none", **settings: Any) -> openai.AsyncOpenAI:
        gateway = await start_gateway(**settings)
        clients.append(openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=api_key, timeout=120))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


async def test_openais_client_uploads_lists_reads_and_deletes(make_client: Make, picture: Make) -> None:
    client = await make_client()
    contents = [picture(32, 32, seed=seed) for seed in range(3)]

    files = [
        await client.files.create(file=(f"{name}.png", content), purpose=purpose)
        for name, content, purpose in zip(("ü b", "c", "d"), contents, ("vision", "user_data", "vision"), strict=True)
    ]

    assert [(file.object, file.status, file.purpose) for file in files] == [
        ("file", "processed", purpose) for purpose in ("vision", "user_data", "vision")
    ]
    assert [(file.filename, file.bytes) for file in files] == [
        (f"{name}.png", len(content)) for name, content in zip(("ü b", "c", "d"), contents, strict=True)
    ]
    assert all(file.expires_at == file.created_at + 30 * 24 * HOUR for file in files)
    assert await client.files.retrieve(files[1].id) == files[1]
    assert [(await client.files.content(file.id)).content for file in files] == contents
    assert [file.id async for file in client.files.list()] == [file.id for file in reversed(files)]
    # One a page: the client follows the pages by `after` and `has_more`.
    assert [file async for file in client.files.list(limit=1, order="asc")] == files
    assert [file.id async for file in client.files.list(purpose="user_data")] == [files[1].id]

    deleted = await client.files.delete(files[0].id)

    assert (deleted.id, deleted.deleted, deleted.object) == (files[0].id, True, "file")
    for act in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            await act(files[0].id)
        assert (refused.value.code, refused.value.param) == ("file_not_found", "file_id")
    assert len((await client.files.list()).data) == 2


async def test_a_client_may_ask_for_a_shorter_life(make_client: Make, picture: Make) -> None:
    client = await make_client(file_lifetime_seconds=4 * HOUR)
    upload = {"file": picture(32, 32), "purpose": "vision"}

    file = await client.files.create(**upload, expires_after={"anchor": "created_at", "seconds": 2 * HOUR})

    assert file.expires_at == file.created_at + 2 * HOUR
    for expires_after, field in (
        ({"anchor": "created_at", "seconds": HOUR - 1}, "seconds"),
        ({"anchor": "created_at", "seconds": 4 * HOUR + 1}, "seconds"),
        ({"anchor": "last_active_at", "seconds": HOUR}, "anchor"),
        ({"anchor": "created_at"}, "seconds"),
        ({"seconds": HOUR}, "anchor"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.files.create(**upload, expires_after=expires_after)
        assert refused.value.param == f"expires_after[{field}]"


async def test_what_is_no_image_is_refused_on_upload(make_client: Make, picture: Make) -> None:
    client = await make_client(max_image_pixels=10_000)
    good = picture(64, 64)
    for content, text in (
        (b"", "not a readable image"),
        (b"%PDF-1.7", "not a readable image"),
        (good[: len(good) // 2], "truncated or corrupt"),
        (picture(200, 100), "20000 pixels, expected at most 10000"),
    ):
        with pytest.raises(openai.BadRequestError, match=text) as refused:
            await client.files.create(file=("a.png", content), purpose="vision")
        assert (refused.value.code, refused.value.param) == ("invalid_image", "file")
    for purpose in ("batch", "fine-tune", "assistants", "x" * 99):
        with pytest.raises(openai.BadRequestError, match="expected vision or user_data") as refused:
            await client.files.create(file=("a.png", good), purpose=purpose)  # type: ignore[arg-type]
        assert refused.value.param == "purpose"
    assert (await client.files.list()).data == []


async def test_a_file_is_its_tenants_whichever_of_their_keys_is_used(
    start_gateway: Start, picture: Make, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    keys = [
        add_key(path, name, tenant=tenant, limits=Limits()) for name, tenant in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    gateway = await start_gateway(keys_file=path)
    a, b, c = ({"authorization": f"Bearer {key}"} for key in keys)
    form = {"files": {"file": picture(32, 32)}, "data": {"purpose": "vision"}}

    assert (await gateway.post(FILES, **form)).status_code == 401
    file_id = (await gateway.post(FILES, **form, headers=a)).json()["id"]

    assert (await gateway.get(f"{FILES}/{file_id}", headers=b)).json()["id"] == file_id
    for method, route in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert (await gateway.request(method, f"{FILES}/{file_id}{route}")).status_code == 401
        assert (await gateway.request(method, f"{FILES}/{file_id}{route}", headers=c)).status_code == 404
    assert (await gateway.get(FILES, headers=c)).json()["data"] == []
    assert len((await gateway.get(FILES, headers=b)).json()["data"]) == 1


async def test_odd_pages_are_refused(start_gateway: Start) -> None:
    gateway = await start_gateway()
    for query in ("limit=0", "limit=10001", "limit=x", "limit=-1", "limit=1e3", "order=up", "after=x"):
        response = await gateway.get(f"{FILES}?{query}")

        assert response.status_code == (404 if "after" in query else 400)
        assert response.json()["error"]["param"] == query.partition("=")[0]


async def test_the_list_may_be_empty(start_gateway: Start) -> None:
    gateway = await start_gateway()

    listed = (await gateway.get(FILES)).json()

    assert listed == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_a_gateway_without_a_folder_says_so(make_client: Make, picture: Make) -> None:
    client = await make_client(files_folder=None)

    with pytest.raises(openai.NotFoundError, match="LAID_FILES_FOLDER"):
        await client.files.create(file=picture(32, 32), purpose="vision")


async def test_a_download_is_nothing_that_a_browser_runs(make_client: Make, picture: Make) -> None:
    client = await make_client()
    file = await client.files.create(file=picture(32, 32), purpose="vision")

    headers = (await client.files.content(file.id)).response.headers

    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == "attachment"
    assert headers["content-length"] == str(file.bytes)


async def test_metrics_count_what_is_kept(start_gateway: Start) -> None:
    gateway = await start_gateway()

    lines = (await gateway.get("/metrics")).text.splitlines()

    assert any(line.startswith('laid_files{model="tiny"} ') for line in lines)


def form(*parts: tuple[str, bytes], boundary: str = "b", end: str = "--") -> bytes:
    """A form of these headers and contents."""
    body = b"".join(f"--{boundary}\r\n{headers}\r\n\r\n".encode() + content + b"\r\n" for headers, content in parts)
    return body + f"--{boundary}{end}\r\n".encode()


FILE = 'content-disposition: form-data; name="file"; filename="a.png"'
PURPOSE = ('content-disposition: form-data; name="purpose"', b"vision")


REFUSED_FORMS = [
    (b"", 400, "not a well-formed"),
    (b"x", 400, "not a well-formed"),
    (b"\r\n" * 1000, 400, "not a well-formed"),
    (b"--b--\r\n", 400, "'file' is missing"),
    (form(PURPOSE), 400, "'file' is missing"),
    (form((FILE, b"a")), 400, "'purpose' is missing"),
    (form((FILE, b"a"), PURPOSE, end=""), 400, "not a well-formed"),
    (form((FILE, b"a"), PURPOSE)[:-9], 400, "not a well-formed"),
    (form((FILE, b"a"), PURPOSE, boundary="c"), 400, "not a well-formed"),
    (form(PURPOSE, PURPOSE), 400, "more than once"),
    (form((FILE, b"a"), (FILE, b"a")), 400, "more than once"),
    (form(('content-disposition: form-data; name="other"', b"a")), 400, "Unknown form field 'other'"),
    (form(('content-disposition: form-data; name="\xff\x00"', b"a")), 400, "Unknown form field"),
    (form(("content-disposition: form-data", b"a")), 400, "Unknown form field ''"),
    (form(('content-disposition: attachment; name="file"', b"a")), 400, "Unknown form field"),
    (form(("x: y", b"a")), 400, "Unknown form field"),
    (form(("", b"a")), 400, "Unknown form field"),
    (form((PURPOSE[0], b"v" * 257)), 400, "more than 256 bytes"),
    (form((FILE.replace("a.png", "a" * 256), b"a")), 400, "at most 255 printable"),
    (form((FILE.replace("a.png", "a\tb"), b"a")), 400, "at most 255 printable"),
    (form((FILE.replace("a.png", "a" * 3000), b"a")), 400, "not a well-formed"),
    (form(("\r\n".join(f"x{i}: y" for i in range(9)) + "\r\n" + FILE, b"a")), 400, "not a well-formed"),
    (form((f"bad header: y\r\n{FILE}", b"a")), 400, "not a well-formed"),
    (form((FILE, b"a" * 50_001)), 413, "larger than 50000 bytes"),
    (form((FILE, b"a" * 200_000)), 413, "larger than 50000 bytes"),
    (form(*[PURPOSE] * 5000), 413, "larger than 50000 bytes"),
    (b"--b\r\n" * 10_000, 400, "not a well-formed"),
]  # fmt: skip
REFUSED_HEADERS: list[dict[str, str]] = [
    {"content-type": "application/json"},
    {"content-type": "multipart/form-data"},
    {"content-type": "multipart/form-data; boundary="},
    {"content-type": f"multipart/form-data; boundary={'b' * 71}"},
    {"content-type": "multipart/mixed; boundary=b"},
    {"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"},
    {},
]


async def test_forms_that_are_refused(start_gateway: Start) -> None:
    gateway = await start_gateway(max_image_bytes=50_000)
    for body, status, text in REFUSED_FORMS:
        response = await gateway.post(FILES, content=body, headers={"content-type": "multipart/form-data; boundary=b"})

        assert (response.status_code, response.headers["x-should-retry"]) == (status, "false"), body[:200]
        assert text in response.json()["error"]["message"], body[:200]
    assert (await gateway.get(FILES)).json()["data"] == []


async def test_bodies_that_are_no_forms_are_refused(start_gateway: Start) -> None:
    gateway = await start_gateway()
    for headers in REFUSED_HEADERS:
        response = await gateway.post(FILES, content=form((FILE, b"a"), PURPOSE), headers=headers)

        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type"), headers


async def send(gateway: httpx.AsyncClient, *pieces: bytes, length: str) -> bytes:
    """Sends a form's head and these pieces of its body, and no end; returns the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
    head = f"POST {FILES} HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n{length}\r\n\r\n"
    writer.write(head.encode())
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_file_of_unknown_length_is_refused_at_the_limit(start_gateway: Start) -> None:
    gateway = await start_gateway(max_image_bytes=1000)
    begin = form((FILE, b"a" * 1001))[:-9]

    answer = await send(gateway, f"{len(begin):x}\r\n".encode() + begin + b"\r\n", length="transfer-encoding: chunked")

    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_an_announced_length_over_the_limit_is_refused_unread(start_gateway: Start) -> None:
    gateway = await start_gateway(max_image_bytes=1000)

    assert (await send(gateway, length="content-length: 999999999")).startswith(b"HTTP/1.1 413 ")


async def test_a_form_that_does_not_arrive_is_408(start_gateway: Start) -> None:
    gateway = await start_gateway(body_timeout_seconds=0.1)

    answer = await send(gateway, b"--b\r\n", length="content-length: 100")

    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_form_may_come_in_any_pieces(start_gateway: Start, picture: Make) -> None:
    """Byte by byte, boundaries cut anywhere, and with the boundary's own beginning in the content."""
    gateway = await start_gateway()
    content = picture(16, 16) + b"\r\n--\r\n--bb\r\n\r\n-"
    body = form((FILE, content), PURPOSE)

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    for size in (1, 2, 3, 7, len(body)):
        headers = {"content-type": 'multipart/form-data; boundary="b"', "content-length": str(len(body))}
        response = await gateway.post(FILES, content=pieces(size), headers=headers)
        assert response.status_code == 200, response.text
        file_id = response.json()["id"]
        assert (await gateway.get(f"{FILES}/{file_id}/content")).content == content


async def test_a_quota_refuses_the_upload(make_client: Make, picture: Make) -> None:
    client = await make_client(max_files=1)
    await client.files.create(file=picture(32, 32), purpose="vision")

    with pytest.raises(openai.PermissionDeniedError) as refused:
        await client.files.create(file=picture(32, 32), purpose="vision")

    assert refused.value.code == "file_quota_exceeded"


async def test_names_of_files_stay_names(make_client: Make, picture: Make, tmp_path: Path) -> None:
    client = await make_client()

    file = await client.files.create(file=("../../etc/passwd", picture(32, 32)), purpose="vision")

    assert json.loads(file.to_json())["filename"].endswith("passwd")
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "passwd" in name]
