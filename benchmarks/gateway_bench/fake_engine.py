"""An engine that answers at once, so that what is measured is what stands in front of it.

    python -m gateway_bench.fake_engine PORT

Answers a chat in vLLM's form, streamed or whole, as soon as its body is there. `POST /control {"prompt_tokens": n,
"hold": bool}` sets the usage it reports and whether it keeps requests waiting; `GET /control` tells when clients left.
"""

import asyncio
import json
import sys
import time

import httptools
import uvloop

EVENTS = 8
MODEL = "bench"


class State:
    """What the control route sets and tells."""

    def __init__(self) -> None:
        self.hold = False
        self.waiting = 0
        self.left: list[float] = []
        self.set_usage(11)

    def set_usage(self, prompt_tokens: int) -> None:
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": EVENTS,
            "total_tokens": prompt_tokens + EVENTS,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        start = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
        message = {"role": "assistant", "content": "a blue square"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.whole = _response(_json(start | {"choices": [choice], "usage": usage}), "application/json")
        chunk = start | {"object": "chat.completion.chunk"}
        events = [chunk | {"choices": [{"index": 0, "delta": {"content": " blue"}}]} for _ in range(EVENTS)]
        events.append(chunk | {"choices": [], "usage": usage})
        self.events = [_chunk(b"data: " + _json(event) + b"\n\n") for event in events]
        self.events.append(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self, state: State) -> None:
        self.state = state

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.is_held = False

    def connection_lost(self, _: Exception | None) -> None:
        if self.is_held:
            self.state.left.append(time.monotonic())
            self.state.waiting -= 1

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url
        self.tail = b""
        self.head = b""

    def on_body(self, data: bytes) -> None:
        if len(self.head) < 4096:
            self.head += data[:4096]
        self.tail = (self.tail + data)[-4096:] if len(data) < 4096 else data[-4096:]

    def on_message_complete(self) -> None:
        state = self.state
        if self.url == b"/control":
            if self.tail:
                wanted = json.loads(self.tail)
                state.hold = wanted.get("hold", state.hold)
                state.set_usage(wanted.get("prompt_tokens", 11))
            self._send(_response(_json({"left": state.left, "waiting": state.waiting}), "application/json"))
        elif self.url == b"/v1/models":
            card = {"id": MODEL, "object": "model", "max_model_len": 262144}
            self._send(_response(_json({"object": "list", "data": [card]}), "application/json"))
        elif not self.url.startswith(b"/v1/"):
            self._send(_response(b"{}", "application/json"))
        elif state.hold:
            self.is_held = True
            state.waiting += 1
        elif b'"stream":true' in self.tail or b'"stream":true' in self.head:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            self._send(head + b"transfer-encoding: chunked\r\n\r\n" + state.events[0])
            for event in state.events[1:]:
                self._send(event)
        else:
            self._send(state.whole)

    def _send(self, data: bytes) -> None:
        self.transport.write(data)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _response(body: bytes, kind: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind.encode(), len(body)) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main() -> None:
    state = State()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Engine(state), "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
