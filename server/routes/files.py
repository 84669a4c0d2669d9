"""`/v1/files`: images uploaded once and named by id in later requests, as OpenAI's clients do it."""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from server.errors import BadRequestError, GatewayError, Reason
from server.files.form import form_bytes, read_form
from server.files.store import FileStore, StoredFile, unknown_file
from server.files.upload import check_upload
from server.gateway import Gateway
from server.traffic.caller import caller_of

FILES, FILE, FILE_CONTENT = "/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content"
MAX_PAGE = 10_000
CHUNK_BYTES = 256 * 1024

T = TypeVar("T")


def file_routes(gateway: Gateway) -> APIRouter:
    """Upload, list, look up, download, delete; each of the caller's tenant alone."""
    router = APIRouter()

    async def in_thread(step: Callable[..., T], *arguments: Any, **options: Any) -> T:
        def run() -> T:
            return step(*arguments, **options)

        return await asyncio.get_running_loop().run_in_executor(gateway.threads, run)

    @router.post(FILES)
    async def create(request: Request) -> dict[str, Any]:
        store = _store(gateway)
        # A form is a body like any other, but may be larger than the settings let those be.
        size = min(form_bytes(request, gateway.settings), gateway.settings.max_body_bytes)
        with await gateway.memory.take(size):
            upload = await in_thread(check_upload, await read_form(request, gateway.settings), gateway.settings)
            file = await in_thread(
                store.add,
                caller_of(request).tenant,
                upload.content,
                filename=upload.filename,
                purpose=upload.purpose,
                lifetime_seconds=upload.lifetime_seconds,
            )
        return _file_object(file)

    @router.get(FILES)
    async def list_all(request: Request) -> dict[str, Any]:
        query = request.query_params
        limit = _limit(query.get("limit", str(MAX_PAGE)))
        files = await in_thread(
            _store(gateway).page,
            caller_of(request).tenant,
            # One more than asked for tells whether there are more.
            limit=limit + 1,
            descending=_is_descending(query.get("order", "desc")),
            after=query.get("after"),
            purpose=query.get("purpose"),
        )
        data = [_file_object(file) for file in files[:limit]]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(files) > limit,
        }

    @router.get(FILE)
    async def retrieve(request: Request, file_id: str) -> dict[str, Any]:
        found = await in_thread(_store(gateway).find, caller_of(request).tenant, [file_id])
        if file_id not in found:
            raise unknown_file(file_id)
        return _file_object(found[file_id])

    @router.get(FILE_CONTENT, response_class=Response)
    async def content(request: Request, file_id: str) -> Response:
        file = await in_thread(_store(gateway).open, caller_of(request).tenant, file_id)
        # Whatever the bytes are beside an image, no browser is to run them.
        headers = {
            "content-length": str(os.fstat(file.fileno()).st_size),
            "content-disposition": "attachment",
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(_chunks(file), media_type="application/octet-stream", headers=headers)

    @router.delete(FILE)
    async def delete(request: Request, file_id: str) -> dict[str, Any]:
        await in_thread(_store(gateway).remove, caller_of(request).tenant, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return router


def _store(gateway: Gateway) -> FileStore:
    if gateway.files is None:
        raise GatewayError(404, Reason.NOT_FOUND, "This server keeps no files; LAID_FILES_FOLDER would make it.")
    return gateway.files


def _file_object(file: StoredFile) -> dict[str, Any]:
    """OpenAI's `FileObject`."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= MAX_PAGE):
        raise BadRequestError(Reason.INVALID_REQUEST, f"limit: expected 1 to {MAX_PAGE}.", param="limit")
    return int(text)


def _is_descending(text: str) -> bool:
    if text not in ("asc", "desc"):
        raise BadRequestError(Reason.INVALID_REQUEST, "order: expected asc or desc.", param="order")
    return text == "desc"


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
