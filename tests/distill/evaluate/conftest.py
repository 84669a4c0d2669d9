import base64
import contextlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.evaluate.item import Item


class OpenAIServer(ThreadingHTTPServer):
    """Speaks the OpenAI wire format and knows the answers to the items it was told.

    It finds an item by the decoded pixels of its images, in their order, and by its question, so it answers
    right only if all of that arrived unchanged. Anything else is refused with status 400.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = ["student"]
        self.answers: dict[Any, str] = {}
        self.with_usage = True
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.meeting: threading.Barrier | None = None
        """Where requests wait for each other before they are answered."""
        self.hold_after: int | None = None
        """Requests that are answered; all later ones wait for `release`."""
        self.release = threading.Event()
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def learn(self, item: Item, answer: str) -> None:
        self.answers[(tuple(image.tobytes() for image in item.images), item.question)] = answer

    def complete(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The completion, or None for a prompt that this server was not told."""
        [message] = request["messages"]
        *images, text = message["content"]
        pixels = tuple(decode(part["image_url"]["url"]) for part in images)
        answer = self.answers.get((pixels, text["text"]))
        if answer is None:
            return None
        usage = {
            "prompt_tokens": 30 + 6 * len(images),
            "completion_tokens": 3,
            "total_tokens": 33 + 6 * len(images),
        }
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
            **({"usage": usage} if self.with_usage else {}),
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OpenAIServer

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.server.models]
        self.reply(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.add(self.headers["Authorization"])
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
            hold_after = self.server.hold_after
            is_held = hold_after is not None and len(self.server.requests) > hold_after
        if self.server.meeting:
            self.server.meeting.wait(timeout=60)
        if is_held:
            self.server.release.wait()
        completion = self.server.complete(request)
        with self.server.lock:
            self.server.in_flight -= 1
        if completion is None:
            self.reply(400, {"error": {"message": "unknown prompt", "type": "invalid_request_error"}})
        else:
            self.reply(200, completion)

    def reply(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        # Whoever waited too long may be gone.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(status, body)

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def decode(data_url: str) -> bytes:
    head, _, payload = data_url.partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image.tobytes()


@pytest.fixture
def openai_server() -> Iterator[OpenAIServer]:
    server = OpenAIServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="package")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock checkpoint of the base student's size that never learned anything; copied before it is written."""
    from distill.miniature.models import SIZES, make_model
    from distill.miniature.processor import make_processor

    folder = tmp_path_factory.mktemp("checkpoint") / "random"
    processor = make_processor()
    make_model(SIZES["base"], processor.tokenizer, seed=0).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
