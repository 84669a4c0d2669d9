"""`GET /`: a page to drop images on, see what they take of the window, and ask."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Response

FOLDER = Path(__file__).parents[1] / "page"
KINDS = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
# Everything comes from this server; blob: are the thumbnails of what the person chose, data: is the empty icon.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes() -> APIRouter:
    """The page's three files; they hold nothing of this server, so no key is asked for."""
    router = APIRouter(include_in_schema=False)
    for name, kind in KINDS.items():
        content = (FOLDER / name).read_bytes()
        router.add_api_route("/" if name == "index.html" else f"/{name}", _serve(content, kind), methods=["GET"])
    return router


def _serve(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    headers = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    async def serve() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=headers)

    return serve
