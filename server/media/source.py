"""Where a request's images are, before any of them is read.

Source              what a request says about one image
├── DataUrl             in the request's own body
├── RemoteUrl           at an address, to be fetched
└── UploadedFile        on this server, uploaded before
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

# Of URLs that are no data URLs; browsers and proxies accept no longer ones.
MAX_JSON_BYTES = 8192
FILE_PREFIX = "file-"


class ImageError(ValueError):
    """An image that cannot be used; the message is for the client and never quotes the image's data or address."""


@dataclass(frozen=True)
class DataUrl:
    """An image in the body: its URL as the client wrote it, a JSON string that is a slice of the body."""

    json: msgspec.Raw


@dataclass(frozen=True)
class RemoteUrl:
    """An image at an `http:` or `https:` URL, of which nothing but the length was checked."""

    url: str


@dataclass(frozen=True)
class UploadedFile:
    """An image that the caller uploaded before; whether it exists and is the caller's was not checked."""

    file_id: str


Source = DataUrl | RemoteUrl | UploadedFile
Content = bytes | Path
"""An image's bytes, or the file that holds them for as long as the request lasts."""


@dataclass(frozen=True, kw_only=True)
class PlacedSource:
    """One image of a request."""

    path: str
    """`messages[0].content[17].image_url`"""
    source: Source | ImageError
    """The error, where what the request says is no source at all: it is reported together with all others."""


def read_source(url: msgspec.Raw) -> Source:
    """What an image's URL in a request means; a long data URL is not read, only its beginning.

    Args:
        url: a JSON string.

    Raises:
        ImageError: none of the three kinds.
    """
    if bytes(memoryview(url)[1:6]) == b"data:" or len(memoryview(url)) > MAX_JSON_BYTES:
        # Whether a long one really is a data URL is seen when it is decoded: only those may be long.
        return DataUrl(url)
    text = msgspec.json.decode(url, type=str)
    scheme, colon, _ = text[:16].partition(":")
    match scheme.lower() if colon else "":
        case "data":
            return DataUrl(url)
        case "http" | "https":
            return RemoteUrl(text)
    if text.startswith(FILE_PREFIX):
        return UploadedFile(text)
    kind = f"a {scheme.lower()}: URL" if colon and scheme.isalnum() else "something else"
    raise ImageError(f"expected a data: URL with base64 data, an https: URL or the id of an uploaded file, got {kind}")
