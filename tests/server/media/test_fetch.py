"""Fetching from a real https server on loopback; names resolve to it as a test says."""

import asyncio
import base64
import contextlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from server.media.fetch import Fetcher, FetchError, FetchOutcome
from server.settings import Settings

PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"
PATIENT: dict[str, Any] = {"fetch_timeout_seconds": 600, "connect_timeout_seconds": 600}
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
Make = Callable[..., Fetcher]


def answer(*, status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    """A whole response; the length is the body's unless a header says else."""

    async def write(writer: asyncio.StreamWriter) -> None:
        fields = {"content-length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
        lines = "".join(f"{name}: {text}\r\n" for name, text in fields.items())
        writer.write(f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + body)

    return write


def redirect(location: str, status: int = 302) -> Answer:
    return answer(status=status, location=location)


@dataclass
class ImageHost:
    """An https server that answers on cue, at a public address and, on the same port, at a private one."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    """By path."""
    heads: list[str] = field(default_factory=list)
    """Of every request."""
    connections: list[str] = field(default_factory=list)
    """The address to which each connection came."""
    lookups: list[str] = field(default_factory=list)
    addresses: Callable[[str, int], list[str]] = lambda _host, _count: [PUBLIC]
    """Of a host, when it is asked for the n-th time."""
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client left before it had the answer."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def lookup(self, host: str, port: int) -> list[Any]:
        assert port == 443
        self.lookups.append(host)
        return [
            {
                "hostname": host,
                "host": address,
                "port": self.port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in self.addresses(host, self.lookups.count(host))
        ]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer.get_extra_info("sockname")[0])
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                await self.answers[head.split()[1].partition("?")[0]](writer)
                await writer.drain()
        self.aborted.set()
        writer.transport.abort()

    async def drip(self, writer: asyncio.StreamWriter) -> None:
        """A body that never ends and hardly moves."""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.01)
        raise ConnectionResetError

    async def flood(self, writer: asyncio.StreamWriter) -> None:
        """A body without an announced length or an end."""
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"1000\r\n" + b"." * 4096 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        raise ConnectionResetError


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
async def host(authority: trustme.CA) -> AsyncIterator[ImageHost]:
    image_host = ImageHost()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("images.test", "other.test", "localhost").configure_cert(context)
    public = await asyncio.start_server(image_host.serve, PUBLIC, 0, ssl=context)
    image_host.port = public.sockets[0].getsockname()[1]
    private = await asyncio.start_server(image_host.serve, PRIVATE, image_host.port, ssl=context)
    async with public, private:
        yield image_host
        for writer in image_host.writers:
            writer.transport.abort()


@pytest.fixture
async def make_fetcher(host: ImageHost, authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Callable[..., Fetcher]]:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    fetchers = []

    def make(**changes: Any) -> Fetcher:
        settings = Settings(**({"checkpoint": tmp_path, "fetch_ca_file": ca_file} | PATIENT | changes))
        fetchers.append(Fetcher(settings, lookup=host.lookup, is_public=lambda address: address == PUBLIC))
        return fetchers[-1]

    yield make
    for fetcher in fetchers:
        await fetcher.aclose()


async def fetch(fetcher: Fetcher, *urls: str, total: int = 10**9) -> list[bytes | FetchError]:
    return await fetcher.fetch(urls, max_total_bytes=total)


async def failure(fetcher: Fetcher, url: str) -> FetchError:
    (error,) = await fetch(fetcher, url)
    assert isinstance(error, FetchError)
    return error


async def test_an_image_comes_as_it_is_and_nothing_of_the_client_goes_out(
    host: ImageHost, make_fetcher: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    body = bytes(range(256)) * 1000
    host.answers["/a/../b//%7Ec"] = answer(body=body, set_cookie="a=b", content_type="text/html")
    fetcher = make_fetcher()

    for _ in range(2):
        assert await fetch(fetcher, "https://images.test/a/../b//%7Ec?d=%2F&e#f") == [body]

    for head in host.heads:
        lines = head.lower().splitlines()
        assert lines[0] == "get /a/../b//%7ec?d=%2f&e http/1.1"
        assert {"host: images.test", "accept-encoding: identity"} < set(lines)
        assert not any(line.startswith(("cookie", "authorization", "referer")) for line in lines)
    # The second came over the checked connection of the first.
    assert (host.lookups, host.connections) == (["images.test"], [PUBLIC])


async def test_equal_urls_are_fetched_once_and_keep_their_places(host: ImageHost, make_fetcher: Make) -> None:
    host.answers |= {"/a": answer(body=b"a"), "/b": answer(body=b"b")}
    a, b = "https://images.test/a", "https://images.test/b"

    assert await fetch(make_fetcher(), a, b, a, a) == [b"a", b"b", b"a", b"a"]
    assert len(host.heads) == 2


async def test_every_failing_image_is_told_and_the_others_come(host: ImageHost, make_fetcher: Make) -> None:
    host.answers |= {"/a": answer(body=b"a"), "/gone": answer(status=404)}

    results = await fetch(
        make_fetcher(), "https://images.test/gone", "http://images.test/a", "https://images.test/a", "https://10.0.0.1/"
    )

    outcomes = [result.outcome if isinstance(result, FetchError) else result for result in results]
    assert outcomes == [FetchOutcome.STATUS, FetchOutcome.REFUSED, b"a", FetchOutcome.REFUSED]


@pytest.mark.parametrize("addresses", [[PRIVATE], [PUBLIC, PRIVATE], [PRIVATE, PUBLIC], []])
async def test_a_name_with_any_private_address_is_not_connected_to(
    host: ImageHost, make_fetcher: Make, addresses: list[str]
) -> None:
    host.addresses = lambda _host, _count: addresses

    error = await failure(make_fetcher(), "https://images.test/a")

    assert (error.outcome, host.connections) == (FetchOutcome.UNREACHABLE, [])


async def test_private_unresolved_and_closed_look_the_same(host: ImageHost, make_fetcher: Make, free_port: int) -> None:
    def resolve(name: str, _: int) -> list[str]:
        if name == "unknown.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [PRIVATE if name == "private.test" else PUBLIC]

    host.addresses = resolve
    host.port = free_port
    fetcher = make_fetcher()

    texts = {str(await failure(fetcher, f"https://{name}.test/a")) for name in ("unknown", "private", "closed")}

    assert texts == {"its host cannot be reached at a public address"}


async def test_a_name_that_changes_its_address_is_checked_for_each_connection(
    host: ImageHost, make_fetcher: Make
) -> None:
    host.addresses = lambda _host, count: [PUBLIC if count == 1 else PRIVATE]
    host.answers["/a"] = answer(body=b"a", connection="close")
    fetcher = make_fetcher()

    assert await fetch(fetcher, "https://images.test/a") == [b"a"]
    # One look-up for one connection: what was checked is what was connected to.
    assert host.lookups == ["images.test"]
    assert (await failure(fetcher, "https://images.test/a")).outcome is FetchOutcome.UNREACHABLE
    assert (host.lookups, host.connections) == (["images.test"] * 2, [PUBLIC])


async def test_the_certificate_must_be_the_hosts(host: ImageHost, make_fetcher: Make) -> None:
    host.answers["/a"] = answer(body=b"a")

    assert (await failure(make_fetcher(), "https://wrong.test/a")).outcome is FetchOutcome.CERTIFICATE
    assert (
        await failure(make_fetcher(fetch_ca_file=None), "https://images.test/a")
    ).outcome is FetchOutcome.CERTIFICATE
    assert host.heads == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(host: ImageHost, make_fetcher: Make, status: int) -> None:
    host.answers |= {"/a": redirect("https://other.test/b", status), "/b": redirect("c?d"), "/c": answer(body=b"c")}

    assert await fetch(make_fetcher(), "https://images.test/a") == [b"c"]
    assert [head.split()[1] for head in host.heads] == ["/a", "/b", "/c?d"]


@pytest.mark.parametrize(
    ("location", "outcome"),
    [
        ("https://private.test/secret", FetchOutcome.UNREACHABLE),
        ("//private.test/secret", FetchOutcome.UNREACHABLE),
        ("http://other.test/", FetchOutcome.REFUSED),
        ("https://other.test:8443/", FetchOutcome.REFUSED),
        ("https://127.0.0.1/", FetchOutcome.REFUSED),
        ("https://169.254.169.254/latest/meta-data/", FetchOutcome.REFUSED),
        ("https://[::1]/", FetchOutcome.REFUSED),
        ("https://a:b@other.test/", FetchOutcome.REFUSED),
        ("\\\\127.0.0.1\\a", FetchOutcome.REFUSED),
        ("/\\127.0.0.1/a", FetchOutcome.REFUSED),
        ("file:///etc/passwd", FetchOutcome.REFUSED),
        ("data:image/png;base64,AAAA", FetchOutcome.REFUSED),
        ("https://exämple.test/", FetchOutcome.REFUSED),
        ("/a", FetchOutcome.REDIRECTS),
    ],
)
async def test_redirects_are_checked_from_the_start(
    host: ImageHost, make_fetcher: Make, location: str, outcome: FetchOutcome
) -> None:
    host.addresses = lambda name, _: [PRIVATE if name == "private.test" else PUBLIC]
    host.answers |= {"/a": redirect(location), "/secret": answer(body=b"secret")}

    error = await failure(make_fetcher(), "https://images.test/a")

    assert error.outcome is outcome
    assert set(host.connections) == {PUBLIC}
    assert len(host.heads) == (4 if outcome is FetchOutcome.REDIRECTS else 1)


async def test_a_redirect_to_nowhere(host: ImageHost, make_fetcher: Make) -> None:
    host.answers["/a"] = answer(status=302)

    assert (await failure(make_fetcher(), "https://images.test/a")).outcome is FetchOutcome.BROKEN


async def test_an_allow_list_holds_for_redirects_too(host: ImageHost, make_fetcher: Make) -> None:
    host.answers |= {"/a": redirect("https://other.test/a"), "/b": answer(body=b"b")}
    fetcher = make_fetcher(fetch_hosts=["images.test"])

    assert await fetch(fetcher, "https://images.test/b") == [b"b"]
    assert "not one from which" in str(await failure(fetcher, "https://images.test/a"))
    assert "not one from which" in str(await failure(fetcher, "https://other.test/a"))


@pytest.mark.parametrize(
    ("body", "headers", "outcome"),
    [
        (b"." * 1001, {}, FetchOutcome.TOO_LARGE),
        (b"", {"content-length": "1001"}, FetchOutcome.TOO_LARGE),
        (b"", {"content-length": "99999999999999999999999"}, FetchOutcome.BROKEN),
        (b"ab", {"content-length": "3", "connection": "close"}, FetchOutcome.BROKEN),
        (b"ab", {"content-length": "-2"}, FetchOutcome.BROKEN),
        (b"ab", {"content-length": "two"}, FetchOutcome.BROKEN),
        (b"ab", {"content-encoding": "gzip"}, FetchOutcome.BROKEN),
        (b"ab", {"content-encoding": "br"}, FetchOutcome.BROKEN),
        (b"", {"x": "y" * 9000}, FetchOutcome.BROKEN),
        (b"zz\r\n", {"transfer-encoding": "chunked"}, FetchOutcome.BROKEN),
    ],
)  # fmt: skip
async def test_answers_that_lie_or_are_too_large(
    host: ImageHost, make_fetcher: Make, body: bytes, headers: dict[str, str], outcome: FetchOutcome
) -> None:
    async def write(writer: asyncio.StreamWriter) -> None:
        await answer(body=body, **headers)(writer)
        if "connection" in headers:
            raise ConnectionResetError

    host.answers["/a"] = write

    assert (await failure(make_fetcher(max_image_bytes=1000), "https://images.test/a")).outcome is outcome


async def test_nothing_is_read_past_the_announced_length(host: ImageHost, make_fetcher: Make) -> None:
    host.answers["/a"] = answer(body=b"abc", content_length="2")

    (result,) = await fetch(make_fetcher(), "https://images.test/a")

    # Which of the two depends on whether the third byte comes together with the others.
    assert result == b"ab" or (isinstance(result, FetchError) and result.outcome is FetchOutcome.BROKEN)


async def test_an_endless_body_is_left_at_the_limit(host: ImageHost, make_fetcher: Make) -> None:
    host.answers["/a"] = host.flood

    error = await failure(make_fetcher(max_image_bytes=100_000), "https://images.test/a")

    assert (error.outcome, str(error)) == (FetchOutcome.TOO_LARGE, "more than 100000 bytes")
    await asyncio.wait_for(host.aborted.wait(), 60)


async def test_all_images_of_a_request_share_its_bytes(host: ImageHost, make_fetcher: Make) -> None:
    host.answers |= {f"/{i}": answer(body=b"." * 400) for i in range(5)}
    urls = [f"https://images.test/{i}" for i in range(5)]

    results = await fetch(make_fetcher(), *urls, total=1000)

    assert sum(isinstance(result, bytes) for result in results) == 2
    assert {result.outcome for result in results if isinstance(result, FetchError)} == {FetchOutcome.TOO_LARGE}


async def test_a_dripping_body_ends_at_the_deadline(host: ImageHost, make_fetcher: Make) -> None:
    host.answers["/a"] = host.drip

    error = await failure(make_fetcher(fetch_timeout_seconds=0.5), "https://images.test/a")

    assert error.outcome is FetchOutcome.TIMEOUT


async def test_many_images_share_one_deadline_and_few_connections(host: ImageHost, make_fetcher: Make) -> None:
    host.answers |= {f"/{i}": host.drip for i in range(20)}
    fetcher = make_fetcher(fetch_timeout_seconds=0.5, fetch_request_concurrency=3)

    results = await fetch(fetcher, *(f"https://images.test/{i}" for i in range(20)))

    assert {result.outcome for result in results if isinstance(result, FetchError)} == {FetchOutcome.TIMEOUT}
    assert all(isinstance(result, FetchError) for result in results)
    # Had each its own deadline, the ones that waited would have had a turn.
    assert len(host.connections) <= 3


async def test_fetches_of_all_requests_together_are_bounded(host: ImageHost, make_fetcher: Make) -> None:
    release, num_running, most_running = asyncio.Event(), 0, 0

    async def wait(writer: asyncio.StreamWriter) -> None:
        nonlocal num_running, most_running
        num_running += 1
        most_running = max(most_running, num_running)
        if num_running == 4:
            release.set()
        await release.wait()
        num_running -= 1
        await answer(body=b"a")(writer)

    host.answers |= {f"/{i}": wait for i in range(12)}
    fetcher = make_fetcher(fetch_concurrency=4, fetch_timeout_seconds=600)

    results = await asyncio.gather(*(fetch(fetcher, f"https://images.test/{i}") for i in range(12)))

    assert results == [[b"a"]] * 12
    assert most_running == 4


async def test_a_request_that_ends_ends_its_fetches(host: ImageHost, make_fetcher: Make) -> None:
    begun = asyncio.Event()

    async def drip(writer: asyncio.StreamWriter) -> None:
        begun.set()
        await host.drip(writer)

    host.answers["/a"] = drip
    task = asyncio.create_task(fetch(make_fetcher(fetch_timeout_seconds=600), "https://images.test/a"))
    await asyncio.wait_for(begun.wait(), 60)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(host.aborted.wait(), 60)


async def test_fetching_can_be_switched_off(host: ImageHost, make_fetcher: Make) -> None:
    error = await failure(make_fetcher(fetch_images=False), "https://images.test/a")

    assert error.outcome is FetchOutcome.REFUSED
    assert host.lookups == []


async def test_a_trusted_host_may_be_private_but_tells_nothing_of_its_answer(
    host: ImageHost, authority: trustme.CA, tmp_path: Path
) -> None:
    """With the system's own resolver and the product's own rule for addresses."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    host.answers |= {"/a": answer(body=b"a"), "/b": answer(status=403)}
    trusted = Settings(
        checkpoint=tmp_path, fetch_ca_file=ca_file, fetch_trusted_hosts=(f"localhost:{host.port}",), **PATIENT
    )
    fetcher, strict = Fetcher(trusted), Fetcher(Settings(checkpoint=tmp_path))
    url = f"https://localhost:{host.port}"
    try:
        assert await fetch(fetcher, f"{url}/a") == [b"a"]
        error = await failure(fetcher, f"{url}/b")
        assert (error.outcome, str(error)) == (FetchOutcome.STATUS, "its host did not answer with an image")
        assert (await failure(strict, f"{url}/a")).outcome is FetchOutcome.REFUSED
    finally:
        await fetcher.aclose()
        await strict.aclose()


async def test_a_request_gets_its_images_and_every_failure_by_its_path(
    host: ImageHost,
    authority: trustme.CA,
    tmp_path: Path,
    cued_engine: Any,
    start_gateway: Callable[..., Awaitable[httpx.AsyncClient]],
    chat: Callable[..., Any],
    picture: Callable[..., bytes],
) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    gateway = await start_gateway(fetch_ca_file=ca_file, fetch_trusted_hosts=(f"localhost:{host.port}",), **PATIENT)
    content = picture(32, 32)
    host.answers |= {"/a": answer(body=content), "/html": answer(body=b"<html>"), "/gone": answer(status=404)}

    def part(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url}}

    url = f"https://localhost:{host.port}"
    good = await gateway.post("/v1/chat/completions", json=chat([part(f"{url}/a")] * 3))
    urls = (f"{url}/a", f"{url}/html", f"{url}/gone", "http://example.com/", "https://10.0.0.1/")
    bad = await gateway.post("/v1/chat/completions", json=chat([part(address) for address in urls]))

    assert good.status_code == 200, good.text
    sent = json.loads(cued_engine.bodies[0])["messages"][0]["content"]
    assert [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in sent] == [content] * 3
    assert (bad.status_code, len(cued_engine.bodies)) == (400, 1)
    error = bad.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_image", "messages[0].content[1].image_url")
    assert error["message"].startswith("4 of 5 images cannot be used.")
    assert [f"messages[0].content[{i}].image_url: " in error["message"] for i in range(5)] == [False] + [True] * 4
    lines = (await gateway.get("/metrics")).text.splitlines()
    for outcome, count in (("ok", 3), ("status", 1), ("refused", 2), ("unreachable", 0)):
        assert f'laid_fetches_total{{model="tiny",outcome="{outcome}"}} {count}.0' in lines


async def test_no_error_tells_an_address_or_a_part_of_the_url(host: ImageHost, make_fetcher: Make) -> None:
    host.addresses = lambda name, _: [PRIVATE if name == "private.test" else PUBLIC]
    host.answers |= {
        "/r": redirect("https://private.test/secret"),
        "/s": redirect("http://secret.test/"),
        "/404": answer(status=404, body=b"secret"),
        "/cut": answer(body=b"secret", content_length="x"),
    }
    urls = [f"https://images.test/{path}?token=secret" for path in ("r", "s", "404", "cut")]
    urls += ["https://private.test/secret", "https://secret@images.test/", "https://10.0.0.1/secret"]

    for result in await fetch(make_fetcher(), *urls):
        assert isinstance(result, FetchError)
        assert "secret" not in str(result)
        assert not re.search(r"\d+\.\d+\.\d+|\.test", str(result))
