"""Images uploaded once and named by id: from OpenAI's client to the real engine, and what an id must not reach."""

import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.traffic.caller import Limits
from server.traffic.new_key import add_key

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT, FILES, RESPONSES = "/v1/chat/completions", "/v1/files", "/v1/responses"
UNKNOWN = f"file-{'0' * 32}"


def by_file_id(file_id: str) -> list[dict[str, Any]]:
    """Every way in which a chat request can name an uploaded image."""
    return [
        {"type": "image_url", "image_url": {"file_id": file_id}},
        {"type": "image_url", "image_url": {"url": file_id}},
        {"type": "file", "file": {"file_id": file_id}},
    ]


@pytest.mark.engine
def test_openais_client_uploads_asks_and_deletes(served: Any, picture: Make, chat: Make, image_part: Make) -> None:
    content = picture(96, 64, seed=7)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=300) as client:
        expected = client.chat.completions.create(**chat([image_part(content=content)], temperature=0))
        file = client.files.create(file=("a.png", content), purpose="vision")

        for part in by_file_id(file.id):
            answer = client.chat.completions.create(**chat([part], temperature=0))
            assert answer.choices[0].message.content == expected.choices[0].message.content
            assert answer.usage is not None
            assert expected.usage is not None
            assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
        response = client.responses.create(
            model="tiny",
            input=[{"role": "user", "content": [{"type": "input_image", "file_id": file.id, "detail": "auto"}]}],
            max_output_tokens=4,
            temperature=0,
        )
        assert response.output_text == expected.choices[0].message.content
        client.files.delete(file.id)

        with pytest.raises(openai.BadRequestError, match="no such uploaded file") as refused:
            client.chat.completions.create(**chat([by_file_id(file.id)[0]]))
        assert refused.value.param == "messages[0].content[0].image_url"
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)


async def upload(gateway: httpx.AsyncClient, content: bytes, **options: Any) -> str:
    response = await gateway.post(FILES, files={"file": content}, data={"purpose": "vision"}, **options)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


async def test_the_engine_gets_the_uploaded_bytes(
    cued_engine: Any, start_gateway: Start, picture: Make, chat: Make
) -> None:
    gateway = await start_gateway()
    content = picture(32, 32)
    parts = by_file_id(await upload(gateway, content))

    response = await gateway.post(CHAT, json=chat(parts))

    assert response.status_code == 200, response.text
    sent = json.loads(cued_engine.bodies[-1])["messages"][0]["content"]
    assert [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in sent] == [content] * 3
    assert len({part["uuid"] for part in sent}) == 1
    assert b"file-" not in cued_engine.bodies[-1]
    assert "fetch;dur=" in response.headers["server-timing"]


async def test_a_file_that_was_seen_before_is_read_again_for_the_engine_alone(
    start_gateway: Start, picture: Make, chat: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway()
    body = chat([by_file_id(await upload(gateway, picture(32, 32)))[0]])
    opened, really_open = [], Path.open

    def note(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.parent.name == "images":
            opened.append(path)
        return really_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", note)

    counts = []
    for _ in range(2):
        assert (await gateway.post(CHAT, json=body)).status_code == 200
        counts.append(len(opened))

    # Read for its name and size, decoded once, and sent; then it is known, and the engine holds it.
    assert counts == [3, 3]


async def test_unknown_ids_are_told_by_their_paths_together_with_all_else(
    start_gateway: Start, chat: Make, image_part: Make
) -> None:
    gateway = await start_gateway()
    parts = [*by_file_id(UNKNOWN), image_part(content=b"no image"), image_part(32, 32)]

    error = (await gateway.post(CHAT, json=chat(parts))).json()["error"]

    assert error["message"].startswith("4 of 5 images cannot be used. messages[0].content[0].image_url: there is no")
    assert "messages[0].content[2].file: there is no such uploaded file" in error["message"]
    content = [{"type": "input_image", "file_id": UNKNOWN}]
    response = await gateway.post(RESPONSES, json={"model": "tiny", "input": [{"role": "user", "content": content}]})
    assert response.json()["error"]["param"] == "input[0].content[0].file_id"


async def test_no_tenant_can_use_anothers_file(
    cued_engine: Any, start_gateway: Start, picture: Make, chat: Make, tmp_path: Path
) -> None:
    keys = [add_key(tmp_path / "keys.toml", name, tenant=None, limits=Limits()) for name in ("a", "b")]
    gateway = await start_gateway(keys_file=tmp_path / "keys.toml")
    a, b = ({"authorization": f"Bearer {key}"} for key in keys)
    file_id = await upload(gateway, picture(32, 32), headers=a)
    body = chat(by_file_id(file_id))

    theirs = await gateway.post(CHAT, json=body, headers=b)
    assert theirs.status_code == 400
    assert theirs.text == (await gateway.post(CHAT, json=chat(by_file_id(UNKNOWN)), headers=b)).text
    assert cued_engine.bodies == []
    assert (await gateway.post(CHAT, json=body, headers=a)).status_code == 200


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"type": "image_url", "image_url": {}}, "Expected either `url` or `file_id`"),
        ({"type": "image_url", "image_url": {"url": "data:,", "file_id": UNKNOWN}}, "Expected either"),
        ({"type": "file", "file": {}}, "missing required field `file_id`"),
        ({"type": "file", "file": {"file_id": 1}}, "Expected `str`"),
        ({"type": "file", "file": {"file_data": "data:,", "filename": "a.pdf"}}, "unknown field `file_data`"),
    ],
)
async def test_parts_that_name_no_file(start_gateway: Start, chat: Make, part: dict[str, Any], text: str) -> None:
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat([part]))

    assert response.status_code == 400
    assert text in response.json()["error"]["message"]
