import ast
import importlib.util
from pathlib import Path

import pytest

from server.errors import BadRequestError, Reason
from server.requests.parameters import ALLOWED, REFUSED, Parameters, check_names, read_parameters


def test_every_parameter_of_the_engine_is_decided_on() -> None:
    """Neither list holds a name twice, and no parameter of vLLM's own request is left out."""
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    # Read, not imported: that would take ten seconds.
    source = Path(package.origin).parent / "entrypoints/openai/chat_completion/protocol.py"
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    (request,) = [node for node in classes if node.name == "ChatCompletionRequest"]
    annotated = [node.target for node in request.body if isinstance(node, ast.AnnAssign)]
    names = {target.id for target in annotated if isinstance(target, ast.Name) and not target.id.startswith("_")}

    assert len(names) > 50
    assert names <= ALLOWED | REFUSED.keys()
    assert not ALLOWED & REFUSED.keys()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_change_the_server_for_others_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadRequestError, match=f"'{name}' is not accepted: ") as refused:
        check_names({"model", name}, REFUSED, ALLOWED)

    assert (refused.value.reason, refused.value.param) == (Reason.UNSUPPORTED_PARAMETER, name)


def test_an_unknown_parameter_names_the_nearest_known() -> None:
    with pytest.raises(BadRequestError, match=r"Unknown parameter 'max_token'\. Did you mean 'max_tokens'") as refused:
        check_names({"max_token"}, REFUSED, ALLOWED)

    assert (refused.value.reason, refused.value.param) == (Reason.UNKNOWN_PARAMETER, "max_token")


def test_reads_what_the_gateway_acts_on() -> None:
    values = {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 2,
        "max_completion_tokens": 5,
    }

    assert read_parameters(values | {"max_tokens": 9}, max_choices=2) == Parameters(
        model="m",
        stream=True,
        include_usage=True,
        choices=2,
        max_tokens=5,
        max_tokens_name="max_completion_tokens",
        reasoning_effort=None,
    )


@pytest.mark.parametrize("name", ["n", "stream", "max_tokens", "stream_options", "reasoning_effort"])
def test_null_is_the_default(name: str) -> None:
    assert read_parameters({"model": "m", name: None}, max_choices=1) == read_parameters({"model": "m"}, max_choices=1)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({}, "model"),
        ({"model": 3}, "model"),
        ({"model": "m", "n": 0}, "n"),
        ({"model": "m", "n": 17}, "n"),
        ({"model": "m", "n": "2"}, "n"),
        ({"model": "m", "n": True}, "n"),
        ({"model": "m", "max_tokens": 0}, "max_tokens"),
        ({"model": "m", "max_tokens": 1.5}, "max_tokens"),
        ({"model": "m", "stream": "yes"}, "stream"),
        ({"model": "m", "stream_options": {}}, "stream_options"),
        ({"model": "m", "stream": True, "stream_options": {"include_usages": True}}, "stream_options"),
        ({"model": "m", "stream": True, "stream_options": 1}, "stream_options"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        read_parameters(values, max_choices=16)

    assert (refused.value.status, refused.value.param) == (400, param)
