"""What the README promises: distil, serve, ask with the `openai` client."""

import base64
import io
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import server
from distill.checkpoint import read_laid
from distill.evaluate.tasks import MiniatureTask

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

TASK = MiniatureTask(kind="open", seed=2)
ITEMS = 20


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def served(make_serve, run_folder):
    with make_serve(f"RUN={run_folder}", limit_seconds=900) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served.base_url, api_key="none", max_retries=0) as client:
        yield client


def ask(client, model, item, stream):
    """The answer, its usage, and the headers."""
    content = [*({"type": "image_url", "image_url": {"url": data_url(image)}} for image in item.images)]
    content.append({"type": "text", "text": item.question})
    request = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 16,
        "temperature": 0,
    }
    if not stream:
        response = client.chat.completions.with_raw_response.create(**request)
        completion = response.parse()
        return completion.choices[0].message.content, completion.usage, response.headers
    response = client.chat.completions.with_raw_response.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in response.parse():
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    return text, usage, response.headers


def data_url(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def scrape(served):
    """Every sample of /metrics by name and labels."""
    text = httpx.get(f"{served.root_url}/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def added_since(before, served, until):
    """What the samples grew by, once the last one to be counted, a response, has reached its number."""
    sample, number = until
    deadline = time.monotonic() + 60
    while True:
        added = {name: value - before.get(name, 0) for name, value in scrape(served).items()}
        if added.get(sample, 0) >= number or time.monotonic() > deadline:
            return added
        time.sleep(0.05)


@pytest.mark.parametrize(("num_images", "least_right"), [(1, 0.9), (20, 0.9), (100, 0.7)])
def test_answers_are_right_and_counts_agree(served, client, run_folder, num_images, least_right):
    window = window_in_tokens(run_folder / "student")
    before = scrape(served)
    right, tokens = 0, 0
    for index in range(ITEMS):
        for stream in (False, True):
            item = TASK.item(num_images, index)
            text, usage, headers = ask(client, served.model, item, stream)
            right += text == item.answer
            tokens += usage.prompt_tokens
            assert usage.prompt_tokens == int(headers["x-laid-prompt-tokens"])
            assert usage.prompt_tokens_details.image_tokens == 4 * num_images
            assert int(headers["x-laid-image-tokens"]) == 4 * num_images
            assert float(headers["x-laid-effective-window-use"]) == pytest.approx(
                usage.prompt_tokens / window, abs=6e-4
            )
    assert right / (2 * ITEMS) >= least_right
    requests = ("laid_requests_total", "/v1/chat/completions", "200")
    added = added_since(before, served, until=(requests, 2 * ITEMS))
    model = served.model
    assert added["laid_request_images_count", model] == 2 * ITEMS
    assert added["laid_request_images_sum", model] == 2 * ITEMS * num_images
    assert added["laid_image_tokens_sum", model] == 2 * ITEMS * 4 * num_images
    assert added["laid_prompt_tokens_sum", model] == tokens
    assert added["laid_count_difference_tokens_count", model] == 2 * ITEMS
    assert added["laid_count_difference_tokens_sum", model] == 0
    assert added["laid_effective_window_use_ratio_count", model] == 2 * ITEMS
    assert added["laid_time_to_first_token_seconds_count", "<8k", model] == ITEMS
    assert added[requests] == 2 * ITEMS
    assert sum(value for (name, *_), value in added.items() if name == "laid_errors_total") == 0


def window_in_tokens(folder):
    measured = read_laid(folder)["effective_window"]
    (window,) = (w for w in measured["windows"] if w["kind"] == "absolute" and w["threshold"] == measured["threshold"])
    return window["tokens"]


def test_what_make_serve_printed_works(served, tmp_path):
    curl = shlex.split(re.search(r"^curl .*$", served.output, re.MULTILINE)[0])
    body = subprocess.run(curl, capture_output=True, text=True, timeout=300, check=True).stdout
    program = re.search(r"^from base64 .*?^print\(answer.usage\)$", served.output, re.DOTALL | re.MULTILINE)[0]
    snippet = tmp_path / "snippet.py"
    snippet.write_text(program)
    printed = subprocess.run([sys.executable, snippet], capture_output=True, text=True, timeout=300, check=True).stdout
    answer = json.loads(body)["choices"][0]["message"]["content"]
    assert answer in printed.splitlines()[0]
    assert answer == Path(server.__file__).with_name("examples").joinpath("answer.txt").read_text().strip()


def test_the_student_beats_the_base_student_at_50_images_through_the_gateway(served, make_serve, tmp_path):
    student = measure(served, tmp_path / "student")
    with make_serve("MODEL=distill/miniature/checkpoints/base") as base_served:
        base = measure(base_served, tmp_path / "base")
    assert student["low"] > base["high"], (student, base)


def measure(served, folder):
    """Accuracy at 50 images with its 95 % interval, by `distill evaluate URL`."""
    command = [sys.executable, "-m", "distill", "evaluate", served.base_url, "--sizes", "50", "--out", str(folder)]
    subprocess.run(command, check=True, timeout=600)
    return json.loads((folder / "report.json").read_text())["effective_window"]["curve"][0]
