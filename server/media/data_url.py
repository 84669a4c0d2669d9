"""Takes the bytes out of a `data:` URL that is still the client's JSON."""

import msgspec
import pybase64

from server.media.source import DataUrl, ImageError

# `data:image/<type>;base64,` and what little more a client may write there.
MAX_HEAD_CHARACTERS = 128


def estimate_bytes(source: DataUrl) -> int:
    """An upper bound of the image's size, in bytes, without decoding it."""
    return len(memoryview(source.json)) * 3 // 4


def decode_data_url(source: DataUrl, max_bytes: int) -> bytes:
    """The bytes of a `data:image/...;base64,` URL.

    Raises:
        ImageError: not a base64 data URL, bad base64, empty or more than `max_bytes`.
    """
    json = memoryview(source.json)
    try:
        return _decode(json[1:-1], max_bytes)
    except ImageError:
        # Most clients write no escapes, and base64 finds those that do, like PHP's `\/` for every slash.
        if b"\\" not in bytes(json):
            raise
        return _decode(memoryview(msgspec.json.decode(json, type=str).encode()), max_bytes)


def _decode(url: memoryview, max_bytes: int) -> bytes:
    head, comma, _ = bytes(url[:MAX_HEAD_CHARACTERS]).partition(b",")
    if b"\\" in head or head[:5].lower() != b"data:":
        raise ImageError("expected a data: URL with base64 data")
    if not comma or not head.lower().endswith(b";base64") or not head.isascii():
        raise ImageError("expected data:image/<type>;base64,<data>")
    if not head.endswith(b"base64"):
        raise ImageError("expected the word base64 in lower case before the comma")
    data = url[len(head) + 1 :]
    # Four characters hold three bytes, so an oversized image is refused before it is decoded.
    if len(data) * 3 // 4 > max_bytes + 2:
        raise ImageError(f"about {len(data) * 3 // 4} bytes, expected at most {max_bytes}")
    try:
        content = pybase64.b64decode(data, validate=True)
    except ValueError:
        raise ImageError("the base64 data is malformed") from None
    if not content:
        raise ImageError("the image is empty")
    if len(content) > max_bytes:
        raise ImageError(f"{len(content)} bytes, expected at most {max_bytes}")
    return content
