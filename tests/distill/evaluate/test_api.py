import threading
from typing import Any

import pytest

from distill.evaluate.api import ApiRunner, served_model
from distill.evaluate.measure import Answered
from distill.evaluate.tasks import MiniatureTask

TASK = MiniatureTask(kind="open", seed=1)


def runner(server: Any, concurrency: int = 4) -> ApiRunner:
    return ApiRunner(server.url, "student", "secret", concurrency)


def test_every_image_and_question_arrives_and_every_answer_goes_to_its_item(openai_server: Any) -> None:
    items = [TASK.item(5, index) for index in range(12)]
    for index, item in enumerate(items):
        openai_server.learn(item, f"answer {index}")
    done: list[Answered] = []
    answers = runner(openai_server).answer(items, done.append)
    assert [answer.text for answer in answers] == [f"answer {index}" for index in range(12)]
    assert {answer.prompt_tokens for answer in answers} == {60}
    assert sorted((each.item.index, each.answer.text) for each in done) == [(i, f"answer {i}") for i in range(12)]


def test_the_request_asks_for_a_short_greedy_answer_of_the_named_model(openai_server: Any) -> None:
    item = TASK.item(1, 0)
    openai_server.learn(item, item.answer)
    runner(openai_server).answer([item], lambda _: None)
    [request] = openai_server.requests
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("student", 0, 16)
    assert [part["type"] for part in request["messages"][0]["content"]] == ["image_url", "text"]
    assert openai_server.keys == {"Bearer secret"}


def test_requests_overlap_up_to_the_concurrency_and_no_further(openai_server: Any) -> None:
    items = [TASK.item(1, index) for index in range(9)]
    for item in items:
        openai_server.learn(item, item.answer)
    # Each request waits for two others: fewer at a time would never be answered.
    openai_server.meeting = threading.Barrier(3)
    answers = runner(openai_server, concurrency=3).answer(items, lambda _: None)
    assert [answer.text for answer in answers] == [item.answer for item in items]
    assert openai_server.most_in_flight == 3


def test_a_refusal_ends_the_measurement_with_the_servers_words(openai_server: Any) -> None:
    items = [TASK.item(1, index) for index in range(4)]
    openai_server.learn(items[0], items[0].answer)
    with pytest.raises(ValueError, match=rf"^{openai_server.url}: .*unknown prompt"):
        runner(openai_server, concurrency=1).answer(items, lambda _: None)
    assert len(openai_server.requests) == 2


def test_a_server_that_does_not_count_tokens_is_refused(openai_server: Any) -> None:
    item = TASK.item(1, 0)
    openai_server.learn(item, item.answer)
    openai_server.with_usage = False
    with pytest.raises(ValueError, match="the answer has no usage"):
        runner(openai_server).answer([item], lambda _: None)


def test_the_only_model_needs_no_name(openai_server: Any) -> None:
    assert served_model(openai_server.url, "none") == "student"


@pytest.mark.parametrize(
    ("models", "message"), [(["a", "b"], "serves a, b; name one"), ([], "serves no model; name one")]
)
def test_several_models_or_none_need_a_name(openai_server: Any, models: list[str], message: str) -> None:
    openai_server.models = models
    with pytest.raises(ValueError, match=message):
        served_model(openai_server.url, "none")


def test_concurrency_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="concurrency: 0, expected at least 1"):
        ApiRunner("http://127.0.0.1:1/v1", "student", "none", 0)
