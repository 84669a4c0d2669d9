"""A client that costs little, so that what it measures is the server."""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    """From the request's first byte sent to the response's last received."""

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One kept-alive HTTP/1.1 connection with blocking calls."""

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self.port = port
        self._headers = headers or {}
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=600)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def post(self, body: bytes, path: str = CHAT) -> Answer:
        started = time.perf_counter()
        self.socket.sendall(self.head("POST", path, f"content-length: {len(body)}"))
        self.socket.sendall(body)
        return self.read(started)

    def get(self, path: str) -> Answer:
        started = time.perf_counter()
        self.socket.sendall(self.head("GET", path))
        return self.read(started)

    def head(self, method: str, path: str, *lines: str) -> bytes:
        headers = [f"{name}: {value}" for name, value in self._headers.items()]
        fields = ["host: 127.0.0.1", "content-type: application/json", *headers, *lines]
        return (f"{method} {path} HTTP/1.1\r\n" + "\r\n".join(fields) + "\r\n\r\n").encode()

    def read(self, started: float) -> Answer:
        data = self._rest
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, body = data.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            while not body.endswith(b"0\r\n\r\n"):
                body += self._receive()
        else:
            length = int(headers.get("content-length", "0"))
            while len(body) < length:
                body += self._receive()
        return Answer(
            status=int(status_line.split()[1]), headers=headers, body=body, seconds=time.perf_counter() - started
        )

    def _receive(self) -> bytes:
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data
