"""A body taken apart in one pass, against the two passes that it stands for."""

from typing import Any

import msgspec
import pytest

from server.errors import BadRequestError
from server.requests.conversation import Message
from server.requests.decoding import BodyDecoder, decode_messages, split_body

NAMES = frozenset({"messages", "model", "stop", "seed"})
DECODER = BodyDecoder(NAMES, content="messages", kind=list[Message])
HELLO = b'[{"role":"user","content":"hello"}]'


def comparable(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        name: decode_messages(value) if name == "messages" else bytes(memoryview(value)) for name, value in raw.items()
    }


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"model": "tiny"}',
        b'{"messages": %b, "model": "tiny", "stop": ["a", "b"]}' % HELLO,
        b' { "seed" : null ,\n"messages" :\t%b } ' % HELLO,
        b'{"messages": [], "messages": %b}' % HELLO,
        b'{"seed": 1, "messages": %b, "seed": {"a": [2]}}' % HELLO,
        rb'{"\u0073eed": 1}',
    ],
)
def test_what_is_right_is_the_same(body: bytes) -> None:
    assert comparable(DECODER.split(body)) == comparable(dict(split_body(body)))


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": 7}',
        b'{"messages": null, "seed": 1}',
        b'{"messages": [{"role": "robot"}]}',
        b'{"messages": 7, "messages": %b}' % HELLO,
        b'{"messages": %b, "priority": 1}' % HELLO,
        b'{"messages": [[[[]]]]}',
    ],
)
def test_what_is_wrong_or_unknown_is_left_as_it_is(body: bytes) -> None:
    raw = DECODER.split(body)

    assert all(isinstance(value, msgspec.Raw) for value in raw.values())
    assert raw.keys() == split_body(body).keys()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": NaN}', b"{} {}"])
def test_what_is_no_json_object_is_refused_alike(body: bytes) -> None:
    with pytest.raises(BadRequestError) as refused:
        DECODER.split(body)
    with pytest.raises(BadRequestError) as expected:
        split_body(body)

    assert refused.value.body() == expected.value.body()
