"""Puts the engine's chat answer, whole or streamed, into the form of `/v1/responses`."""

import time
import uuid
from typing import Any

import msgspec

from server.errors import GatewayError
from server.responses.output import (
    Kind,
    OutputItem,
    incomplete_reason,
    items_of,
    new_item,
    read_logprobs,
    read_usage,
    without_bytes,
)

# The part of an event's name that tells what kind of text it is about.
TEXTS: dict[Kind, str] = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponsesForm:
    """One response: its constant fields, and as a stream the items so far."""

    def __init__(self, values: dict[str, Any]) -> None:
        """`values` are the request's parameters, checked, of which an answer repeats some."""
        self._response = _base(values)
        self._sequence_number = 0
        self._items: list[OutputItem] = []
        self._call_index: int | None = None
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._has_failed = False

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The response for a chat completion of one choice."""
        (choice,) = answer["choices"]
        self._items = items_of(choice)
        self._finish_reason = choice.get("finish_reason")
        self._usage = answer["usage"]
        return self._ended()

    def opening(self) -> bytes:
        """`response.created` and `response.in_progress`."""
        return b"".join(self._event(f"response.{name}", response=self._response) for name in ("created", "in_progress"))

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        """The events for one chunk of chat."""
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
        events = b""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if text := delta.get("reasoning"):
                events += self._text("reasoning", text, [])
            if text := delta.get("content"):
                events += self._text("message", text, read_logprobs(choice))
            for call in delta.get("tool_calls") or ():
                events += self._call(call)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        return events

    def failed(self, error: GatewayError) -> bytes:
        """`response.failed`."""
        self._has_failed = True
        code = "invalid_prompt" if error.status < 500 else "server_error"
        failure = {"status": "failed", "error": {"code": code, "message": error.message}}
        output = [item.value("incomplete") for item in self._items]
        return self._event("response.failed", response=self._response | failure | {"output": output})

    def closing(self) -> bytes:
        """Ends the last item, and the response."""
        if self._has_failed:
            return b""
        events = b"" if self._items else self._open(new_item("message"))
        events += self._close()
        response = self._ended()
        return events + self._event(f"response.{response['status']}", response=response)

    def _ended(self) -> dict[str, Any]:
        reason = incomplete_reason(self._finish_reason)
        status = "completed" if reason is None else "incomplete"
        output = [item.value("completed") for item in self._items[:-1]]
        return self._response | {
            "status": status,
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": [*output, self._items[-1].value(status)],
            "usage": None if self._usage is None else read_usage(self._usage),
        }

    def _text(self, kind: Kind, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        events = b""
        if not self._items or self._items[-1].kind != kind:
            events = self._close() + self._open(new_item(kind))
        item = self._items[-1]
        item.text += text
        item.logprobs += logprobs
        fields = {"content_index": 0, "delta": text}
        if kind == "message":
            fields["logprobs"] = without_bytes(logprobs)
        return events + self._item_event(f"response.{TEXTS[kind]}.delta", **fields)

    def _call(self, call: dict[str, Any]) -> bytes:
        function = call.get("function") or {}
        events = b""
        if call["index"] != self._call_index:
            item = new_item("function_call", call_id=call.get("id") or "", name=function.get("name") or "")
            events = self._close() + self._open(item)
            self._call_index = call["index"]
        arguments = function.get("arguments")
        if not arguments:
            return events
        self._items[-1].text += arguments
        return events + self._item_event("response.function_call_arguments.delta", delta=arguments)

    def _open(self, item: OutputItem) -> bytes:
        self._items.append(item)
        value = item.value("in_progress", is_begun=False)
        events = self._event("response.output_item.added", output_index=len(self._items) - 1, item=value)
        if item.kind == "function_call":
            return events
        return events + self._item_event("response.content_part.added", content_index=0, part=item.part())

    def _close(self) -> bytes:
        """The events at the end of the last item, if there is one."""
        if not self._items:
            return b""
        item = self._items[-1]
        if item.kind == "function_call":
            events = self._item_event("response.function_call_arguments.done", arguments=item.text)
        else:
            fields = {"content_index": 0, "text": item.text}
            if item.kind == "message":
                fields["logprobs"] = without_bytes(item.logprobs)
            events = self._item_event(f"response.{TEXTS[item.kind]}.done", **fields)
            events += self._item_event("response.content_part.done", content_index=0, part=item.part())
        status = "completed" if incomplete_reason(self._finish_reason) is None else "incomplete"
        index = len(self._items) - 1
        return events + self._event("response.output_item.done", output_index=index, item=item.value(status))

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._items[-1].id, output_index=len(self._items) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(event))


def _base(values: dict[str, Any]) -> dict[str, Any]:
    """A response before its first item."""
    names = (
        "instructions", "max_output_tokens", "prompt_cache_key", "safety_identifier", "temperature", "top_logprobs",
        "top_p", "user",
    )  # fmt: skip
    reasoning = values.get("reasoning", {})
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "max_tool_calls": None,
        "metadata": values.get("metadata", {}),
        "model": values["model"],
        "output": [],
        "parallel_tool_calls": values.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "service_tier": "default",
        "store": False,
        "text": {"format": values.get("text", {}).get("format") or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": values.get("tool_choice", "auto"),
        "tools": [{"description": None, "parameters": None, "strict": None} | tool for tool in values.get("tools", ())],
        "truncation": "disabled",
        "usage": None,
    } | {name: values.get(name) for name in names}
