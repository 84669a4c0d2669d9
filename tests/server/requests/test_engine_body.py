"""What an engine gets: the client's JSON, with only the intended changes."""

import asyncio
import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import GatewayError, Reason
from server.media.source import UploadedFile

Make = Callable[..., Any]


def named(body: dict[str, Any], uuids: list[str], held: frozenset[str] = frozenset()) -> dict[str, Any]:
    """A client's request as the engine shall read it."""
    body, names = json.loads(json.dumps(body)), iter(uuids)
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                part["uuid"] = next(names)
                part["image_url"].pop("detail", None)
                if part["uuid"] in held:
                    part["image_url"] = None
    return body


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}, {"stream_options": None}])
def test_a_stream_without_usage_asks_the_engine_for_it(
    admit: Make, engine_json: Make, chat: Make, options: dict[str, Any]
) -> None:
    sent = chat(stream=True, **options)

    admitted = admit(json.dumps(sent).encode() + b" \n")

    assert engine_json(admitted) == sent | {"stream_options": {"include_usage": True}}


def test_a_stream_with_usage_is_left_alone(admit: Make, engine_json: Make, chat: Make) -> None:
    sent = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})

    assert engine_json(admit(sent)) == sent


def test_images_keep_their_bytes_and_get_names(admit: Make, engine_json: Make, chat: Make, image_part: Make) -> None:
    sent = chat([image_part(32, 32), {"type": "text", "text": "ü\0"}, image_part(16, 16)], temperature=0.1, seed=2**60)

    admitted = admit(json.dumps(sent, indent=3).encode())

    uuids = [image.uuid for image in admitted.images]
    assert engine_json(admitted) == named(sent, uuids)
    assert [len(uuid) for uuid in uuids] == [32, 32]
    assert engine_json(admitted, {uuids[1]}) == named(sent, uuids, frozenset(uuids[1:]))


def test_an_image_that_is_held_is_left_out_each_time_it_occurs(
    admit: Make, engine_json: Make, chat: Make, image_part: Make
) -> None:
    admitted = admit(chat([image_part(32, 32), image_part(16, 16), image_part(32, 32)]))

    first, second, third = (image.uuid for image in admitted.images)

    assert first == third != second
    parts = engine_json(admitted, {first})["messages"][0]["content"]
    assert [part["image_url"] is None for part in parts] == [True, False, True]


def test_no_image_is_copied(admit: Make, chat: Make, image_part: Make) -> None:
    body = json.dumps(chat([image_part(64, 64), image_part(48, 48)])).encode()

    pieces = asyncio.run(admit(body).body.payload(())).pieces

    slices = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert [bytes(piece) for piece in slices] == [
        json.dumps(part["image_url"]["url"]).encode() for part in json.loads(body)["messages"][0]["content"]
    ]


@pytest.mark.parametrize("as_file", [False, True])
def test_a_loaded_image_is_sent_as_data(
    admit: Make, engine_json: Make, chat: Make, picture: Make, image_part: Make, tmp_path: Path, as_file: bool
) -> None:
    content = picture(32, 32)
    path = tmp_path / "image"
    path.write_bytes(content)
    body = chat([{"type": "image_url", "image_url": {"url": "file-1"}}, image_part(content=content)])

    admitted = admit(body, load=lambda _: path if as_file else content)

    loaded, inline = engine_json(admitted)["messages"][0]["content"]
    assert base64.b64decode(loaded["image_url"]["url"].partition("base64,")[2]) == content
    assert loaded["uuid"] == inline["uuid"]


def test_a_file_that_was_deleted_since_it_was_checked_is_named(
    admit: Make, engine_json: Make, chat: Make, picture: Make, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(picture(32, 32))
    body = chat([{"type": "image_url", "image_url": {"url": "file-1"}}])
    admitted = admit(body, load=lambda source: path if source == UploadedFile("file-1") else None)
    path.unlink()

    with pytest.raises(GatewayError, match=r"content\[0\]\.image_url: the uploaded file was deleted") as refused:
        engine_json(admitted)

    assert (refused.value.status, refused.value.reason) == (400, Reason.INVALID_IMAGE)


def test_all_that_is_wrong_with_the_images_is_told_at_once(
    admit: Make, chat: Make, image_part: Make, picture: Make
) -> None:
    cut = image_part(content=picture(32, 32)[:-400])
    body = chat([image_part(32, 32), cut, image_part(content=b"no image"), image_part(16, 16), cut])

    with pytest.raises(GatewayError) as refused:
        admit(body)

    assert re.findall(r"content\[(\d)\]", refused.value.message) == ["1", "2", "4"]


def test_two_tenants_never_share_a_name(admit: Make, chat: Make, image_part: Make) -> None:
    body = chat([image_part(32, 32)])

    names = [admit(body, tenant=tenant).images[0].uuid for tenant in ("a", "b", "a")]

    assert names[0] == names[2] != names[1]


def test_a_clients_own_name_for_an_image_is_refused(admit: Make, chat: Make, image_part: Make) -> None:
    with pytest.raises(GatewayError, match="uuid") as refused:
        admit(chat([image_part(32, 32) | {"uuid": "mine"}]))

    assert (refused.value.status, refused.value.param) == (400, "messages[0].content[0]")


class _Written:
    """JSON as one of many clients might write it."""

    def __init__(self, draw: st.DrawFn, url: str) -> None:
        self._draw, self._url = draw, url

    def value(self, value: Any) -> str:
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, dict):
            members = [f"{self._string(key)}{self._space()}:{self.value(child)}" for key, child in value.items()]
            return self._joined("{", members, "}")
        if isinstance(value, list):
            return self._joined("[", [self.value(child) for child in value], "]")
        return self._space() + json.dumps(value)

    def _joined(self, start: str, members: list[str], end: str) -> str:
        return self._space() + start + ",".join(self._space() + member for member in members) + self._space() + end

    def _string(self, text: str) -> str:
        written = json.dumps(text, ensure_ascii=self._draw(st.booleans()))
        if self._draw(st.integers(0, 3)) == 0:
            written = written.replace("/", self._draw(st.sampled_from(["\\/", "\\u002f", "\\u002F"])))
        if self._draw(st.integers(0, 3)) == 0:
            written = written.replace("A", "\\u0041")
        return self._space() + written

    def _space(self) -> str:
        return self._draw(st.sampled_from(["", "", "", " ", "\n\t", "\r\n  "]))


@st.composite
def requests(draw: st.DrawFn, urls: list[str]) -> tuple[dict[str, Any], bytes]:
    """A request, and its JSON in any layout, with keys that are there twice."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "<|" not in text)
    part = st.one_of(
        text.map(lambda text: {"type": "text", "text": text}),
        st.sampled_from(urls).map(lambda url: {"type": "image_url", "image_url": {"url": url}}),
        st.sampled_from(urls).map(lambda url: {"image_url": {"detail": "high", "url": url}, "type": "image_url"}),
    )
    message = st.fixed_dictionaries(
        {"role": st.just("user"), "content": st.one_of(text, st.lists(part, min_size=1, max_size=4))}
    )
    # JSON has no infinities.
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
    json_value = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), numbers, text),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
        max_leaves=5,
    )
    body = {
        "model": "tiny",
        "messages": draw(st.lists(message, min_size=1, max_size=3)),
        **draw(
            st.fixed_dictionaries({}, optional={"metadata": json_value, "temperature": st.floats(0, 2), "user": text})
        ),
    }
    written = _Written(draw, urls[0])
    names = draw(st.permutations(list(body)))
    # Of two equal keys the last one counts, for the engine too.
    doubled = [name for name in names if draw(st.integers(0, 3)) == 0]
    members = [f"{written.value(name)}:{written.value(7)}" for name in doubled]
    members += [f"{written.value(name)}:{written.value(body[name])}" for name in names]
    return body, ("{" + ",".join(members) + "}").encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_the_engine_reads_what_the_client_wrote(
    admit: Make, engine_json: Make, image_part: Make, data: st.DataObject
) -> None:
    urls = [image_part(*size)["image_url"]["url"] for size in ((16, 16), (32, 16), (16, 48))]
    body, written = data.draw(requests(urls))
    assert json.loads(written) == body

    admitted = admit(written)

    uuids = [image.uuid for image in admitted.images]
    held = frozenset(data.draw(st.lists(st.sampled_from(uuids)))) if uuids else frozenset()
    assert engine_json(admitted) == named(body, uuids)
    assert engine_json(admitted, held) == named(body, uuids, held)
