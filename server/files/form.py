"""Reads an upload's multipart form while it arrives, under limits on everything in it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from server.errors import BadRequestError, GatewayError, Reason
from server.settings import Settings

FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
MAX_FIELD_BYTES = 256
MAX_FILENAME_CHARACTERS = 255
MAX_PART_HEADERS = 8
MAX_HEADER_BYTES = 2048
MAX_OVERHEAD_BYTES = 32 * 1024
"""Of the whole form beside the file's own bytes."""


@dataclass(kw_only=True)
class Form:
    """What a form holds: the file's name and content, and the other fields' texts."""

    filename: str = ""
    content: bytearray | None = None
    texts: dict[str, str] = field(default_factory=dict)


def form_bytes(request: Request, settings: Settings) -> int:
    """The form's size as its header announces it, else as much as a form may have.

    Raises:
        GatewayError: 413 if that is too much.
    """
    limit = settings.max_image_bytes + MAX_OVERHEAD_BYTES
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal():
        return limit
    if int(announced) > limit:
        raise _too_large(settings.max_image_bytes)
    return int(announced)


async def read_form(request: Request, settings: Settings) -> Form:
    """The whole form, for which the caller has taken memory (`form_bytes`).

    Raises:
        GatewayError: 413 at the first byte over a limit; 408 if it does not arrive in time; 415 if it is no multipart
            form; 400 if it is malformed or holds what is not known; 499 if the client leaves.
    """
    reader = _FormReader(_boundary(request), settings.max_image_bytes)
    limit = settings.max_image_bytes + MAX_OVERHEAD_BYTES
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(settings.max_image_bytes)
                reader.write(chunk)
    except TimeoutError:
        raise GatewayError(
            408, Reason.BODY_TIMEOUT, f"The body did not arrive within {settings.body_timeout_seconds:g} s."
        ) from None
    except ClientDisconnect:
        raise GatewayError(499, Reason.CLIENT_LEFT, "The client closed the connection.") from None
    return reader.end()


class _FormReader:
    """Fed with the body's pieces; keeps of them what `FIELDS` names and refuses everything else."""

    def __init__(self, boundary: bytes, max_file_bytes: int) -> None:
        self._form = Form()
        self._max_file_bytes = max_file_bytes
        self._headers: dict[bytes, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._name = ""
        self._data = bytearray()
        self._has_ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_part,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )

    def write(self, chunk: bytes) -> None:
        """Takes the next piece of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _malformed() from None

    def end(self) -> Form:
        """The form, which the body must have held to its end."""
        if not self._has_ended:
            raise _malformed()
        return self._form

    def _begin_part(self) -> None:
        self._headers = {}
        self._data = bytearray()

    def _end_header(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _open_part(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if disposition != b"form-data" or name not in FIELDS:
            raise BadRequestError(
                Reason.UNKNOWN_PARAMETER,
                f"Unknown form field {name[:64]!r}, expected {', '.join(FIELDS)}.",
                param=name[:64] or None,
            )
        if name in self._form.texts or (name == "file" and self._form.content is not None):
            raise BadRequestError(Reason.INVALID_REQUEST, f"{name}: given more than once.", param=name)
        if name == "file":
            self._form.filename = _filename(options)
            self._form.content = self._data
        self._name = name

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]
        if self._name == "file" and len(self._data) > self._max_file_bytes:
            raise _too_large(self._max_file_bytes)
        if self._name != "file" and len(self._data) > MAX_FIELD_BYTES:
            raise BadRequestError(
                Reason.INVALID_REQUEST, f"{self._name}: more than {MAX_FIELD_BYTES} bytes.", param=self._name
            )

    def _end_part(self) -> None:
        if self._name != "file":
            self._form.texts[self._name] = self._data.decode(errors="replace")

    def _end(self) -> None:
        self._has_ended = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    encoding = request.headers.get("content-encoding", "identity").lower()
    boundary = options.get(b"boundary", b"")
    # RFC 2046 allows 70 characters.
    if kind != b"multipart/form-data" or encoding != "identity" or not 1 <= len(boundary) <= 70:
        raise GatewayError(
            415,
            Reason.UNSUPPORTED_MEDIA_TYPE,
            "Expected a body with Content-Type: multipart/form-data and its boundary, and no Content-Encoding.",
        )
    return boundary


def _filename(options: Mapping[bytes, bytes]) -> str:
    name = options.get(b"filename", b"").decode(errors="replace") or "upload"
    if len(name) > MAX_FILENAME_CHARACTERS or not name.isprintable():
        raise BadRequestError(
            Reason.INVALID_REQUEST,
            f"file: expected a file name of at most {MAX_FILENAME_CHARACTERS} printable characters.",
            param="file",
        )
    return name


def _malformed() -> BadRequestError:
    return BadRequestError(Reason.INVALID_REQUEST, "The body is not a well-formed multipart/form-data form.")


def _too_large(limit: int) -> GatewayError:
    return GatewayError(413, Reason.BODY_TOO_LARGE, f"The file is larger than {limit} bytes.", param="file")
