"""Data URLs as clients write them, well and badly."""

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.media.data_url import decode_data_url, estimate_bytes
from server.media.source import DataUrl, ImageError

MAX_BYTES = 100_000


def data_url(json_string: bytes) -> DataUrl:
    return DataUrl(msgspec.Raw(json_string))


@st.composite
def json_strings(draw: st.DrawFn, text: str) -> bytes:
    """A text as JSON in one of the many ways in which it can be written."""
    ways = [lambda c: c, lambda c: f"\\u{ord(c):04x}", lambda c: f"\\u{ord(c):04X}"]
    # A letter here and there is escaped; a slash may be so in one way more.
    choices = draw(st.lists(st.sampled_from([0] * 20 + [1, 2]), min_size=len(text), max_size=len(text)))
    slash = draw(st.sampled_from(["/", "\\/", "\\u002f"]))
    return (
        '"' + "".join(slash if c == "/" else ways[way](c) for c, way in zip(text, choices, strict=True)) + '"'
    ).encode()


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_url_is_read_however_its_json_is_written(content: bytes, data: st.DataObject) -> None:
    url = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    written = data.draw(json_strings(url))
    assert json.loads(written) == url

    assert decode_data_url(data_url(written), MAX_BYTES) == content
    assert estimate_bytes(data_url(written)) >= len(content)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/x.png", "expected a data: URL"),
        ("", "expected a data: URL"),
        ("data:image/png,AAAA", "expected data:image"),
        ("data:image/png;base64", "expected data:image"),
        ("data:image/" + "p" * 300 + ";base64,AAAA", "expected data:image"),
        ("data:image/pñg;base64,AAAA", "expected data:image"),
        ("data:image/png,x;base64,AAAA", "expected data:image"),
        ("data:image/png;BASE64,AAAA", "lower case"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,AAA", "malformed"),
        ("data:image/png;base64,AA\nAA", "malformed"),
        ("data:image/png;base64,AA-_", "malformed"),
        ("data:image/png;base64,ÄÄÄÄ", "malformed"),
        ("data:image/png;base64,\0AAAA", "malformed"),
        ("data:image/png;base64," + "A" * 140_000, "expected at most 100000"),
        ("data:image/png;base64,/" + "A" * 139_999, "expected at most 100000"),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_bad_urls_are_refused_without_being_quoted(url: str, reason: str, ascii_only: bool) -> None:
    written = json.dumps(url, ensure_ascii=ascii_only).encode()

    with pytest.raises(ImageError, match=reason) as refused:
        decode_data_url(data_url(written), MAX_BYTES)

    assert "AAAA" not in str(refused.value)


def test_an_escaped_comma_is_a_comma() -> None:
    with pytest.raises(ImageError, match="expected data:image"):
        decode_data_url(data_url(b'"data:image/png\\u002cx;base64,AAAA"'), MAX_BYTES)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ImageError, match="malformed"):
        decode_data_url(data_url(b'"data:image/png;base64,AA\xff\xfe"'), MAX_BYTES)
