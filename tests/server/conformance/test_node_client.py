"""The official client for Node, unchanged, against the gateway and the real engine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system import need_program

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent / "node"
MODULES = Path(sys.prefix) / "conformance-node" / "node_modules"
CASES = (
    "chat", "chat_stream", "chat_stream_helper", "tool", "structured", "responses", "responses_stream",
    "responses_stream_helper", "responses_tool", "input_tokens", "completions", "models", "not_found", "bad_request",
    "bad_response_request", "bad_stream",
)  # fmt: skip


@pytest.fixture(scope="session")
def results(served: Any, image_part: Callable[..., Any]) -> dict[str, Any]:
    """What every case came to, from one run."""
    node = need_program("node", package="nodejs npm")
    if not MODULES.is_dir():
        missing = "the client for Node is not installed: tests/server/conformance/node/install.sh"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    image_url = image_part(32, 32)["image_url"]["url"]
    output = subprocess.check_output(
        [node, HERE / "conformance.cjs", served.url + "/v1", "tiny", image_url],
        env=os.environ | {"NODE_PATH": str(MODULES)},
        text=True,
    )
    return json.loads(output)


@pytest.mark.parametrize("case", CASES)
def test_the_client_is_served(results: dict[str, Any], case: str) -> None:
    assert "ok" in results[case], results[case]


def test_the_list_above_is_whole(results: dict[str, Any]) -> None:
    assert tuple(results) == CASES


def test_streams_and_whole_answers_say_the_same(results: dict[str, Any]) -> None:
    got = {name: result["ok"] for name, result in results.items()}
    texts = {name: got[name]["text"] for name in got if name.startswith(("chat", "responses")) and "tool" not in name}

    assert len(set(texts.values())) == 1, texts
    assert got["chat"]["usage"]["prompt_tokens_details"]["image_tokens"] == 4
    assert got["chat"]["usage"]["prompt_tokens"] == got["chat_stream"]["usage"]["prompt_tokens"]
    assert got["chat"]["usage"]["prompt_tokens"] == got["responses"]["usage"]["input_tokens"] == got["input_tokens"]
    assert (got["responses_stream"]["first"], got["responses"]["status"]) == ("response.created", "incomplete")
    assert got["responses_stream"]["last"] == "response.incomplete"


def test_tools_and_schemas_hold(results: dict[str, Any]) -> None:
    for case in ("tool", "responses_tool"):
        assert results[case]["ok"]["name"] == "weather"
        assert results[case]["ok"]["arguments"]["city"] in ("Oslo", "Rome")
    assert results["structured"]["ok"]["city"] in ("Oslo", "Rome")
    assert results["models"]["ok"] == ["tiny"]


@pytest.mark.parametrize(
    ("case", "name", "status", "code", "param"),
    [
        ("not_found", "NotFoundError", 404, "model_not_found", "model"),
        ("bad_request", "BadRequestError", 400, "context_length_exceeded", "max_completion_tokens"),
        ("bad_response_request", "BadRequestError", 400, "unsupported_parameter", "store"),
        ("bad_stream", "BadRequestError", 400, "invalid_request", "messages"),
    ],
)
def test_errors_are_the_right_class(
    results: dict[str, Any], case: str, name: str, status: int, code: str, param: str
) -> None:
    expected = {"name": name, "status": status, "code": code, "param": param, "hasId": True}
    assert results[case] == {"ok": expected}
