"""The classes of prompt lengths that metrics tell apart."""

import pytest

from server.telemetry.context_class import context_class_of


@pytest.mark.parametrize(
    ("prompt_tokens", "name"),
    [
        (1, "<8k"),
        (8191, "<8k"),
        (8192, "8-32k"),
        (32767, "8-32k"),
        (32768, "32-64k"),
        (65536, "64-128k"),
        (131072, "64-128k"),
        (131073, ">128k"),
        (10**9, ">128k"),
    ],
)
def test_every_length_has_one_class(prompt_tokens: int, name: str) -> None:
    assert context_class_of(prompt_tokens) == name
