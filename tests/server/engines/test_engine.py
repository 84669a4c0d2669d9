"""The whole server with the real engine: its counts, its streams, its cancellations. One start for all of them."""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.engine

Make = Callable[..., Any]
TEXTS = ("", "hello", "What else is there?\n", "ü漢字🎉", "  spaces  ", "e\u0301", "a b " * 100, "<|not special|>")


@pytest.fixture
def client(served: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def http(served: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=120) as client:
        yield client


def counted(response: httpx.Response) -> tuple[int, int]:
    return int(response.headers["x-laid-prompt-tokens"]), int(response.headers["x-laid-image-tokens"])


def used(usage: dict[str, Any]) -> tuple[int, int]:
    details = usage["prompt_tokens_details"]
    assert details["image_tokens"] + details["text_tokens"] == usage["prompt_tokens"]
    return usage["prompt_tokens"], details["image_tokens"]


@pytest.mark.parametrize("num_images", [0, 1, 2, 20, 100, 200])
def test_the_count_equals_usage_at_every_number_of_images(
    http: httpx.Client, chat: Make, image_part: Make, num_images: int
) -> None:
    content = [
        *(image_part(32, 32, seed=i) for i in range(num_images)),
        {"type": "text", "text": "What else is there?"},
    ]

    response = http.post("/v1/chat/completions", json=chat(content, max_tokens=1))

    assert response.status_code == 200, response.text
    assert counted(response) == used(response.json()["usage"])
    assert counted(response)[1] == 4 * num_images


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3, 3), (31, 33), (40, 40), (127, 129), (600, 3), (500, 300)])
def test_the_count_equals_usage_for_every_shape_and_format(
    http: httpx.Client, chat: Make, image_part: Make, size: tuple[int, int], kind: str
) -> None:
    response = http.post("/v1/chat/completions", json=chat([image_part(*size, kind=kind)], max_tokens=1))

    assert response.status_code == 200, response.text
    assert counted(response) == used(response.json()["usage"])


def random_messages(seed: int, image_part: Make) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    roles = chance.choice(
        [["user"], ["system", "user"], ["user", "assistant", "user"], ["user", "developer", "system", "user"]]
    )
    messages: list[dict[str, Any]] = []
    for role in roles:
        if chance.random() < 0.4 or role != "user":
            messages.append({"role": role, "content": chance.choice(TEXTS)})
            continue
        parts = []
        for _ in range(chance.randrange(5)):
            if chance.random() < 0.5:
                parts.append(image_part(chance.randrange(1, 150), chance.randrange(1, 150), seed=seed))
            else:
                parts.append({"type": "text", "text": chance.choice(TEXTS)})
        messages.append({"role": role, "content": parts, "name": "someone"})
    return messages


@pytest.mark.parametrize("seed", range(40))
def test_the_count_equals_usage_for_every_shape_of_message(
    http: httpx.Client, chat: Make, image_part: Make, seed: int
) -> None:
    body = chat(max_tokens=1) | {"messages": random_messages(seed, image_part)}

    response = http.post("/v1/chat/completions", json=body)

    assert response.status_code == 200, response.text
    assert counted(response) == used(response.json()["usage"])


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "x-anthropic-billing-header: cch=1\nbe kind"}, {"role": "user", "content": "a"}],
        [{"role": "system", "content": "x-anthropic-billing-header: cch=1"}, {"role": "user", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}, {"role": "user", "content": "b"}],
        [{"role": "developer", "content": [{"type": "text", "text": "a"}] * 2}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}],
    ],
    ids=["header and text", "header alone", "no content", "developer", "reasoning"],
)
def test_the_count_follows_what_the_engine_does_to_messages(
    http: httpx.Client, chat: Make, messages: list[dict[str, Any]]
) -> None:
    response = http.post("/v1/chat/completions", json=chat(max_tokens=1) | {"messages": messages})

    assert response.status_code == 200, response.text
    assert counted(response) == used(response.json()["usage"])


def test_the_window_ends_where_the_engines_does(http: httpx.Client, chat: Make) -> None:
    """The longest admitted prompt is answered; the next one is refused by both."""
    base = counted(http.post("/v1/chat/completions", json=chat("", max_tokens=1)))[0]
    one = counted(http.post("/v1/chat/completions", json=chat(" what" * 10, max_tokens=1)))[0] - base
    fits = " what" * ((2047 - base) * 10 // one)
    response = http.post("/v1/chat/completions", json=chat(fits, max_tokens=1))
    assert response.status_code == 200
    assert response.json()["usage"]["prompt_tokens"] == counted(response)[0] == 2047
    assert response.json()["usage"]["completion_tokens"] == 1

    error = http.post("/v1/chat/completions", json=chat(fits + " what", max_tokens=1)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "1 too many" in error["message"]


@pytest.mark.parametrize("asked", [True, False], ids=["usage asked", "usage not asked"])
def test_streams_through_the_official_client(client: openai.OpenAI, chat: Make, image_part: Make, asked: bool) -> None:
    body = chat([image_part(32, 32), {"type": "text", "text": "What is it?"}], temperature=0, max_tokens=8)
    whole = client.chat.completions.create(**body)
    options = {"stream_options": {"include_usage": True}} if asked else {}

    chunks = list(client.chat.completions.create(**body, stream=True, **options))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    if asked:
        (usage,) = usages
        assert whole.usage is not None
        assert usage.prompt_tokens == whole.usage.prompt_tokens
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.model_dump()["image_tokens"] == 4
    else:
        assert usages == []


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "engine_refused"),
        ({"extra_body": {"priority": 1}}, openai.BadRequestError, "unsupported_parameter"),
        ({"max_tokens": 2048}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_errors_are_the_right_class_in_the_official_client(
    client: openai.OpenAI,
    chat: Make,
    change: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    with pytest.raises(kind) as raised:
        client.chat.completions.create(**(chat() | change), stream=stream)

    assert raised.value.code == code


def test_sampling_parameters_reach_the_engine(client: openai.OpenAI, chat: Make) -> None:
    extra = {"top_k": 5, "min_tokens": 3, "ignore_eos": True, "repetition_penalty": 1.1}
    options = {"n": 2, "seed": 7, "logprobs": True, "top_logprobs": 2, "temperature": 1.0, "stop": ["zzz"], "user": "u"}

    answer = client.chat.completions.create(**chat("hello", max_tokens=5), **options, extra_body=extra)

    assert len(answer.choices) == 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [2] * 5


def engine_metric(served: Any, name: str) -> float:
    text = httpx.get(served.engine_url + "/metrics").text
    (value,) = re.findall(rf"^vllm:{name}{{.*}} (\S+)$", text, re.MULTILINE)
    return float(value)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_leaves_frees_the_engine(served: Any, chat: Make, stream: bool) -> None:
    program = f"""
import httpx
body = {json.loads(json.dumps(chat("hello", max_tokens=2000, min_tokens=2000, stream=stream)))!r}
httpx.post({served.url + "/v1/chat/completions"!r}, json=body, timeout=60)
"""
    before = engine_metric(served, "generation_tokens_total")
    leaver = subprocess.Popen([sys.executable, "-c", program])
    wait_until(lambda: engine_metric(served, "num_requests_running") == 1)

    leaver.kill()
    leaver.wait()

    wait_until(lambda: engine_metric(served, "num_requests_running") == 0)
    assert engine_metric(served, "generation_tokens_total") - before < 2000


def test_metrics_agree_with_the_engine(http: httpx.Client, chat: Make, image_part: Make) -> None:
    def samples() -> dict[str, float]:
        lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = samples()
    prompts = 0
    for stream in (True, False):
        response = http.post("/v1/chat/completions", json=chat([image_part(64, 64)] * 3, stream=stream))
        prompts += counted(response)[0]
    after = samples()

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown('laid_prompt_tokens_sum{model="tiny"}') == prompts
    assert grown('laid_image_tokens_sum{model="tiny"}') == 6 * 16
    assert grown('laid_request_images_count{model="tiny"}') == 2
    assert grown('laid_time_to_first_token_seconds_count{context_class="<8k",model="tiny"}') == 1
    assert grown('laid_count_difference_tokens_count{model="tiny"}') == 2
    # Over everything this engine was asked in this session.
    assert after['laid_count_difference_tokens_sum{model="tiny"}'] == 0


def test_models_and_readiness(client: openai.OpenAI, http: httpx.Client) -> None:
    (model,) = client.models.list().data

    assert (model.id, model.model_dump()["max_model_len"]) == ("tiny", 2048)
    assert http.get("/ready").json() == {"status": "ready"}


def test_what_laid_serve_prints_works(served: Any, tmp_path: Path) -> None:
    (curl,) = [line for line in served.output.splitlines() if line.startswith("curl ")]
    answer = json.loads(subprocess.check_output(["bash", "-c", curl + " --silent --fail"], text=True))
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 12

    snippet = served.output[served.output.index("from base64") : served.output.index("Ctrl-C ends it")]
    (tmp_path / "snippet.py").write_text(snippet)
    printed = subprocess.check_output([sys.executable, tmp_path / "snippet.py"], text=True)
    assert f"prompt_tokens={answer['usage']['prompt_tokens']}" in printed


def test_the_engine_listens_on_loopback_only(served: Any) -> None:
    port = int(served.engine_url.rsplit(":", 1)[1])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"]

    assert [address for address in listening if int(address.split(":")[1], 16) == port] == [f"0100007F:{port:04X}"]
