"""What an image's URL in a request means, however its JSON is written."""

import msgspec
import pytest

from server.media.source import DataUrl, ImageError, RemoteUrl, Source, UploadedFile, read_source


def read(json: bytes) -> Source:
    return read_source(msgspec.Raw(json))


@pytest.mark.parametrize(
    "json",
    [
        b'"data:image/png;base64,AAAA"',
        b'"DATA:image/png;base64,AAAA"',
        b'"\\u0064ata:image\\/png;base64,AAAA"',
        b'"data:image/png;base64,' + b"A" * 100_000 + b'"',
    ],
)
def test_a_data_url_stays_the_clients_own_json(json: bytes) -> None:
    source = read(json)

    assert isinstance(source, DataUrl)
    assert bytes(source.json) == json


@pytest.mark.parametrize("json", [b'"https://example.org/a%20b.png"', b'"https:\\/\\/example.org\\u002fa%20b.png"'])
def test_a_link_is_what_its_json_says(json: bytes) -> None:
    assert read(json) == RemoteUrl("https://example.org/a%20b.png")


def test_an_uploaded_file_is_named_by_its_id() -> None:
    assert read(b'"file-0123"') == UploadedFile("file-0123")


@pytest.mark.parametrize(
    ("json", "kind"),
    [
        (b'""', "something else"),
        (b'"AAAA"', "something else"),
        (b'"file:///etc/passwd"', "a file: URL"),
        (b'"ftp://example.org/x.png"', "a ftp: URL"),
        (b'"javascript:alert(1)"', "a javascript: URL"),
        (b'"//example.org/x.png"', "something else"),
        (b'" data:image/png;base64,AAAA"', "something else"),
    ],
)
def test_anything_else_is_refused_without_quoting_it(json: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=f"got {kind}$"):
        read(json)
