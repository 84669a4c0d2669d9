"""Keys as clients and their keeper meet them: at the gateway's routes, and in the file."""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.errors import UnknownKeyError
from server.telemetry.metrics import Metrics
from server.traffic.caller import Limits
from server.traffic.keys import Keys, KeysFileError, read_keys
from server.traffic.new_key import add_key, main

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
NO_LIMITS = Limits()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def read(path: Path) -> str:
    return path.read_text()


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


async def test_every_route_that_does_work_asks_for_a_key(
    cued_engine: Any, start_gateway: Start, chat: Make, path: Path
) -> None:
    key = add_key(path, "alice", tenant=None, limits=NO_LIMITS)
    gateway = await start_gateway(keys_file=path)

    for method, route in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/tiny")):
        for headers in ({}, bearer("laid-guess"), {"authorization": f"Basic {key}"}, {"authorization": key}):
            response = await gateway.request(method, route, json=chat(), headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-should-retry"] == "false"
            error = response.json()["error"]
            assert (error["code"], error["type"], error["param"]) == ("invalid_api_key", "invalid_request_error", None)
            assert "guess" not in response.text
            assert key not in response.text
    assert cued_engine.bodies == []
    for route in ("/health", "/ready", "/metrics"):
        assert (await gateway.get(route)).status_code == 200
    assert (await gateway.post(CHAT, json=chat(), headers=bearer(key))).status_code == 200


async def test_the_official_client_raises_its_own_error_without_a_retry(start_gateway: Start, path: Path) -> None:
    add_key(path, "alice", tenant=None, limits=NO_LIMITS)
    gateway = await start_gateway(keys_file=path)

    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="laid-guess") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()

    assert caught.value.code == "invalid_api_key"
    assert (
        'laid_errors_total{context_class="uncounted",kind="request",reason="invalid_api_key"} 1.0'
        in (await gateway.get("/metrics")).text
    )


async def test_metrics_can_ask_for_a_key(start_gateway: Start, path: Path) -> None:
    key = add_key(path, "prometheus", tenant=None, limits=NO_LIMITS)
    gateway = await start_gateway(keys_file=path, metrics_need_key=True)

    assert (await gateway.get("/metrics")).status_code == 401
    assert 'laid_keys{model="tiny"} 1.0' in (await gateway.get("/metrics", headers=bearer(key))).text
    assert (await gateway.get("/health")).status_code == 200


async def test_a_change_counts_from_the_next_request_on(
    start_gateway: Start, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def status(key: str) -> int:
        return (await gateway.get("/v1/models", headers=bearer(key))).status_code

    alice = add_key(path, "alice", tenant=None, limits=NO_LIMITS)
    gateway = await start_gateway(keys_file=path)
    only_alice = read(path)
    assert await status(alice) == 200

    bob = add_key(path, "bob", tenant=None, limits=NO_LIMITS)
    assert (await status(alice), await status(bob)) == (200, 200)

    write(path, "[keys.alice]\nsha256 = 1\n")
    assert (await status(alice), await status(bob)) == (200, 200)
    remove(path)
    assert (await status(alice), await status(bob)) == (200, 200)
    assert 'laid_keys_reload_errors_total{model="tiny"} 2.0' in (await gateway.get("/metrics")).text
    assert [record.message for record in caplog.records].count("keys_not_reloaded") == 2

    write(path, only_alice)
    assert (await status(alice), await status(bob)) == (200, 401)
    assert 'laid_keys{model="tiny"} 1.0' in (await gateway.get("/metrics")).text


def test_a_key_is_known_with_its_tenant_and_limits(path: Path) -> None:
    defaults = Limits(requests_per_minute=5, concurrency=3)
    alone = add_key(path, "alone", tenant=None, limits=NO_LIMITS)
    member = add_key(path, "team.app-1", tenant="team", limits=Limits(concurrency=7, tokens_per_minute=9))
    keys = Keys(path, defaults=defaults, metrics=Metrics("tiny", engines=()))

    one, other = keys.identify(f"Bearer {alone}"), keys.identify(f"bearer  {member} ")

    assert (one.name, one.tenant, one.limits) == ("alone", "alone", defaults)
    assert (other.name, other.tenant) == ("team.app-1", "team")
    assert other.limits == Limits(requests_per_minute=5, tokens_per_minute=9, concurrency=7)
    # What a header may hold beyond ASCII is no more than another wrong key.
    for wrong in ("", "Bearer", "Bearer ", f"Bearer {alone}x", "Bearer \xff\xfe", hashlib.sha256(b"").hexdigest()):
        with pytest.raises(UnknownKeyError):
            keys.identify(wrong)


def test_the_file_holds_no_key_and_is_its_owners_only(path: Path) -> None:
    key = add_key(path, "alice", tenant=None, limits=NO_LIMITS)

    assert key not in path.read_text()
    assert key.removeprefix("laid-") not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys = 1", r"Expected `object`, got `int` - at `\$\.keys`"),
        ("[keys.a", "Expected"),
        ("", "missing required field `keys`"),
        ('[keys.a]\nsha256 = "abc"', r"sha256"),
        ("[keys.a]\nsha = 1", "unknown field `sha`"),
        ('[keys.a]\nsha256 = "{hash}"\nconcurrency = 0', "concurrency"),
        ('[keys."a b"]\nsha256 = "{hash}"', "matching regex"),
        ('[keys.a]\nsha256 = "{hash}"\n[keys.b]\nsha256 = "{hash}"', "two names have the same sha256"),
        (None, "No such file or directory; make one with laid-keys"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(path: Path, text: str | None, words: str) -> None:
    if text is not None:
        path.write_text(text.replace("{hash}", "0" * 64))

    with pytest.raises(KeysFileError, match=words) as caught:
        read_keys(path, NO_LIMITS)

    assert str(path) in str(caught.value)


def test_the_command_prints_the_key_once_and_refuses_a_taken_name(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["new", "alice", "--file", str(path), "--tenant", "team", "--images-per-minute", "100"]

    assert main(command) == 0
    printed = capsys.readouterr()
    key = printed.out.strip()
    assert key not in printed.err
    keys = Keys(path, defaults=NO_LIMITS, metrics=Metrics("tiny", engines=()))
    assert keys.identify(f"Bearer {key}").limits == Limits(images_per_minute=100)

    assert main(command) == 2
    assert "there is a key 'alice' already" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["new", "a b"], ["new", "a", "--concurrency", "0"], ["new"], []])
def test_the_command_refuses_what_the_file_could_not_hold(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
