"""The output items of a response, from what the engine answered in chat."""

import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["reasoning", "message", "function_call"]
PREFIXES: dict[Kind, str] = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}


@dataclass(kw_only=True)
class OutputItem:
    """One item, as far as it has come."""

    kind: Kind
    id: str
    text: str = ""
    """Of a message or of reasoning; of a call its arguments."""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    call_id: str = ""
    name: str = ""

    def part(self) -> dict[str, Any]:
        """The one content part of a message or of reasoning."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}

    def value(self, status: str, *, is_begun: bool = True) -> dict[str, Any]:
        """The item in OpenAI's form; one that is not begun has no content part yet."""
        value: dict[str, Any] = {"type": self.kind, "id": self.id, "status": status}
        if self.kind == "function_call":
            return value | {"call_id": self.call_id, "name": self.name, "arguments": self.text}
        if self.kind == "reasoning":
            value["summary"] = []
        else:
            value["role"] = "assistant"
        return value | {"content": [self.part()] if is_begun else []}


def new_item(kind: Kind, **fields: Any) -> OutputItem:
    """An item with an id of its own."""
    return OutputItem(kind=kind, id=PREFIXES[kind] + uuid.uuid4().hex, **fields)


def items_of(choice: dict[str, Any]) -> list[OutputItem]:
    """The items of a whole answer: reasoning, text, calls, in this order; an empty answer is an empty message."""
    message = choice["message"]
    items = []
    if reasoning := message.get("reasoning"):
        items.append(new_item("reasoning", text=reasoning))
    calls = message.get("tool_calls") or []
    if message.get("content") or not calls:
        logprobs = read_logprobs(choice)
        items.append(new_item("message", text=message.get("content") or "", logprobs=logprobs))
    for call in calls:
        function = call["function"]
        items.append(new_item("function_call", call_id=call["id"], name=function["name"], text=function["arguments"]))
    return items


def read_logprobs(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """A choice's log-probabilities; the same in both forms but for bytes, which are never null here."""
    content = (choice.get("logprobs") or {}).get("content") or []
    return [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "bytes": entry["bytes"] or [],
            "top_logprobs": [
                {"token": top["token"], "logprob": top["logprob"], "bytes": top["bytes"] or []}
                for top in entry["top_logprobs"]
            ],
        }
        for entry in content
    ]


def without_bytes(logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log-probabilities as events have them, which is without the tokens' bytes."""
    return [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in entry["top_logprobs"]],
        }
        for entry in logprobs
    ]


def read_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Usage under the names that it has here; of the gateway's own, image and text tokens."""
    details = usage.get("prompt_tokens_details") or {}
    reasoning_tokens = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0} | details,
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
    }


def incomplete_reason(finish_reason: str | None) -> str | None:
    """Why an answer is incomplete; None if it is not."""
    return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish_reason or "")
