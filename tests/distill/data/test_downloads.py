"""Against a real server on this machine."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distill.data.bad_samples import BadSampleError
from distill.data.images import ImageReader
from distill.recipe import ImagesConfig


class Server(ThreadingHTTPServer):
    daemon_threads = True
    picture = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []
        self.is_closing = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        name, _, rest = self.path[1:].partition("/")
        getattr(self, f"send_{name}")(rest)

    def send_image(self, _: str) -> None:
        self.reply(200, self.server.picture)

    def send_redirect(self, target: str) -> None:
        self.reply(302, b"", Location=target if "://" in target else f"/{target}")

    def send_missing(self, _: str) -> None:
        self.reply(404, b"")

    def send_endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        while not self.server.is_closing.is_set():
            try:
                self.wfile.write(bytes(1000))
            except OSError:
                return

    def send_drip(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        while not self.server.is_closing.wait(0.05):
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    def reply(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(picture: Any) -> Iterator[Server]:
    server = Server()
    server.picture = picture(7)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.is_closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def host(server: Server) -> str:
    return f"127.0.0.1:{server.server_port}"


@pytest.fixture
def reader(host: str, tmp_path: Path) -> ImageReader:
    config = ImagesConfig(url_hosts=(host,), url_cache=str(tmp_path / "cache"), url_seconds=0.5, max_bytes=20_000)
    return ImageReader(config)


def test_an_image_is_fetched_once(server: Server, host: str, reader: ImageReader, tmp_path: Path) -> None:
    url = f"http://{host}/image/7"
    assert reader.measure(url) == (4, 3)
    assert reader.load(url).getpixel((0, 0)) == (7, 0, 248)
    config = ImagesConfig(url_hosts=(host,), url_cache=str(tmp_path / "cache"))
    assert ImageReader(config).measure(url) == (4, 3)
    assert server.paths == ["/image/7"]
    assert reader.measure(f"http://{host}/redirect/image/8") == (4, 3)


def test_no_host_is_asked_that_is_not_named(server: Server, host: str, tmp_path: Path) -> None:
    config = ImagesConfig(url_hosts=("images.cocodataset.org",), url_cache=str(tmp_path))
    for refusing in (ImageReader(ImagesConfig()), ImageReader(config)):
        with pytest.raises(BadSampleError, match="expected a path or a data URL, or its host"):
            refusing.measure(f"http://{host}/image/7")
    assert server.paths == []


@pytest.mark.parametrize(
    ("path", "reason", "message"),
    [
        ("redirect/http://example.com/a.png", "missing image", "its host 'example.com' in data.images.url_hosts"),
        ("redirect/redirect/redirect/redirect/image", "missing image", "expected at most 3 redirects"),
        ("missing", "missing image", "expected status 200, got 404"),
        ("endless", "unreadable image", "more than 20000 bytes"),
        ("drip", "missing image", "expected the whole image within 0.5 seconds"),
        ("unknown", "missing image", "RemoteProtocolError"),
    ],
)
def test_what_cannot_be_fetched_within_the_limits(
    host: str, reader: ImageReader, tmp_path: Path, path: str, reason: str, message: str
) -> None:
    with pytest.raises(BadSampleError, match=message) as caught:
        reader.measure(f"http://{host}/{path}")
    assert caught.value.reason == reason
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("url", ["http://", "http://[", "ftp://example.com/a.png", "http://127.0.0.1:1/a.png"])
def test_other_urls_are_bad_samples_too(reader: ImageReader, url: str) -> None:
    with pytest.raises(BadSampleError, match="expected"):
        reader.measure(url)
