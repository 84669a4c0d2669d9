"""The least that a gateway in Python can cost: uvicorn, the gateway's own client towards the engine, nothing between.

    python -m gateway_bench.floor PORT ENGINE_PORT

No key, no check, no count, no log and no metric: a request's bytes go to the engine as they come, and back.
"""

import sys
from typing import Any

import uvicorn
from pydantic import HttpUrl

from server.engines.client import Client


class Floor:
    """The ASGI app."""

    def __init__(self, engine_port: int) -> None:
        self._client = Client(HttpUrl(f"http://127.0.0.1:{engine_port}"), connect_timeout_seconds=5.0)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        chunks, more = [], True
        while more:
            message = await receive()
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
        headers = {"content-type": "application/json"}
        with await self._client.ask(
            scope["method"], scope["path"], headers=headers, body=chunks, silence_seconds=60.0
        ) as answer:
            kept = [(name, value) for name, value in answer.headers.items() if name.startswith(b"content-")]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            while chunk := await answer.next_chunk():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    app = Floor(int(sys.argv[2]))
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
    )


if __name__ == "__main__":
    main()
