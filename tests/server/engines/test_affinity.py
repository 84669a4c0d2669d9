from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from server.engines.affinity import affinity_key, rank
from server.requests.conversation import Conversation, Message

NAMES = [f"http://10.0.0.{i}:8000/" for i in range(1, 6)]
KEYS = [str(i).encode() for i in range(2000)]


@pytest.mark.parametrize("gone", NAMES)
def test_an_engine_that_goes_moves_its_own_keys_alone(gone: str) -> None:
    left = [name for name in NAMES if name != gone]
    for key in KEYS:
        before = rank(key, NAMES)
        assert rank(key, left) == [name for name in before if name != gone]


def test_keys_spread_over_all_engines() -> None:
    firsts = [rank(key, NAMES)[0] for key in KEYS]
    # 400 each; five standard deviations are 90.
    assert all(310 <= firsts.count(name) <= 490 for name in NAMES)


def test_the_order_does_not_depend_on_the_configurations() -> None:
    assert all(rank(key, NAMES) == rank(key, reversed(NAMES)) for key in KEYS[:50])


def conversation(*turns: Any) -> Conversation:
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": content} for role, content in zip(roles, turns, strict=False)]
    return Conversation(messages=msgspec.convert(messages, list[Message]), name="messages")


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def test_turns_of_a_conversation_have_one_key() -> None:
    keys = {
        affinity_key("a", conversation("hello"), []),
        affinity_key("a", conversation("hello", "hi", "and?"), []),
    }
    assert len(keys) == 1


def test_a_system_message_alone_does_not_make_requests_alike() -> None:
    def key(question: str) -> bytes:
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": question}]
        return affinity_key("a", Conversation(messages=msgspec.convert(messages, list[Message]), name="messages"), [])

    assert key("one") != key("two")


def test_questions_about_the_same_images_have_one_key(image_part: Callable[..., Any]) -> None:
    images = [msgspec.json.decode(msgspec.json.encode(image_part(32, 32, seed=i))) for i in range(3)]

    def key(question: str, *later: Any, names: list[str], tenant: str = "a") -> bytes:
        encoded = msgspec.json.encode(
            [
                {"role": role, "content": content}
                for role, content in zip(
                    ["user", "assistant"] * 2, [[*images[:2], text(question)], *later], strict=False
                )
            ]
        )
        messages = msgspec.json.decode(encoded, type=list[Message])
        return affinity_key(tenant, Conversation(messages=messages, name="messages"), names)

    first = key("one?", names=["x", "y"])
    assert key("two?", names=["x", "y"]) == first
    assert key("one?", "an answer", [images[2], text("and this?")], names=["x", "y", "z"]) == first
    assert key("one?", names=["x", "z"]) != first
    assert key("one?", names=["x", "y"], tenant="b") != first
