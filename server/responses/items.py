"""The input items of a Responses request, and the messages they are to the model."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from server.errors import BadRequestError, Reason
from server.requests.conversation import NULL, RAW_STRING, ChatPart, ImagePart, ImageUrl, Message, Place, TextPart
from server.requests.tools import CalledFunction, ToolCall


class InputText(msgspec.Struct, tag_field="type", tag="input_text", forbid_unknown_fields=True):
    """Text of the client."""

    text: str


class OutputText(msgspec.Struct, tag_field="type", tag="output_text", forbid_unknown_fields=True):
    """Text of an earlier answer."""

    text: str
    annotations: Any = None
    logprobs: Any = None


class Refusal(msgspec.Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    """What an earlier answer refused with."""

    refusal: str


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text", forbid_unknown_fields=True):
    """Reasoning of an earlier answer."""

    text: str


class InputImage(msgspec.Struct, tag_field="type", tag="input_image", forbid_unknown_fields=True):
    """One image: an address, or the id of an uploaded file."""

    image_url: Annotated[msgspec.Raw, RAW_STRING] = msgspec.field(default_factory=lambda: NULL)
    """A string or null, still as JSON: a slice of the request's body."""
    file_id: str | None = None
    detail: Literal["auto", "high"] | None = None


class FileIdPart(ImagePart):
    """An `input_image` with a `file_id`, as a content part of chat."""

    WRITTEN_AS: ClassVar[str] = "file_id"


Part = InputText | OutputText | Refusal | InputImage


class Item(msgspec.Struct, forbid_unknown_fields=True):
    """Any input item; which fields belong to which type is checked by `ItemReader`."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part | ReasoningText] | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: Any = None
    encrypted_content: None = None


class ItemReader:
    """Turns items into messages; what an assistant did in one turn becomes one message, as the model wrote it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.places: list[Place] = []
        self._turn: Message | None = None

    def read(self, items: list[Item]) -> None:
        """Reads all items of a request.

        Raises:
            BadRequestError: an item lacks a field or has one that does not belong there; names the path.
        """
        readers = {
            "message": self._read_message,
            "reasoning": self._read_reasoning,
            "function_call": self._read_call,
            "function_call_output": self._read_output,
        }
        for i, item in enumerate(items):
            readers[item.type](item, f"input[{i}]")

    def add(self, message: Message, place: Place) -> None:
        """Appends a message that belongs to no assistant's turn."""
        self._append(message, place)
        self._turn = None

    def _append(self, message: Message, place: Place) -> None:
        self.messages.append(message)
        self.places.append(place)

    def _assistant(self, place: str) -> Message:
        """The message of the assistant's present turn."""
        if self._turn is None:
            self._turn = Message(role="assistant")
            self._append(self._turn, Place(place, f"{place}.content"))
        return self._turn

    def _read_message(self, item: Item, place: str) -> None:
        _require(item, place, "role", "content")
        path = f"{place}.content"
        if item.role != "assistant":
            self.add(Message(role=item.role or "user", content=_read_content(item.content, path)), Place(place, path))
            return
        if self._turn is not None and (self._turn.content is not None or self._turn.tool_calls):
            self._turn = None
        message = self._assistant(place)
        self.places[-1] = Place(place, path)
        message.content = _read_content(item.content, path)

    def _read_reasoning(self, item: Item, place: str) -> None:
        parts = item.content if isinstance(item.content, list) else []
        text = "".join(part.text for part in parts if isinstance(part, ReasoningText))
        if text:
            self._turn = None
            self._assistant(place).reasoning = text

    def _read_call(self, item: Item, place: str) -> None:
        _require(item, place, "call_id", "name", "arguments")
        function = CalledFunction(name=item.name or "", arguments=item.arguments or "")
        message = self._assistant(place)
        message.tool_calls = [*(message.tool_calls or ()), ToolCall(id=item.call_id or "", function=function)]

    def _read_output(self, item: Item, place: str) -> None:
        _require(item, place, "call_id", "output")
        path = f"{place}.output"
        content = _read_content(item.output, path)
        self.add(Message(role="tool", content=content, tool_call_id=item.call_id), Place(place, path))


def _read_content(content: str | list[Any] | None, path: str) -> str | list[ChatPart] | None:
    if not isinstance(content, list):
        return content
    return [_read_part(part, f"{path}[{j}]") for j, part in enumerate(content)]


def _read_part(part: Part | ReasoningText, path: str) -> TextPart | ImagePart:
    if isinstance(part, Refusal):
        return TextPart(text=part.refusal)
    if not isinstance(part, InputImage):
        return TextPart(text=part.text)
    has_url = bytes(memoryview(part.image_url)) != b"null" if len(memoryview(part.image_url)) == 4 else True
    if has_url == (part.file_id is not None):
        raise BadRequestError(Reason.INVALID_REQUEST, f"{path}: expected either 'image_url' or 'file_id'.", param=path)
    detail = part.detail or "auto"
    if part.file_id is not None:
        return FileIdPart(image_url=ImageUrl(file_id=part.file_id, detail=detail))
    return ImagePart(image_url=ImageUrl(url=part.image_url, detail=detail))


_FIELDS = {
    "message": {"role", "content", "phase"},
    "reasoning": {"content", "summary", "encrypted_content"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
}


def _require(item: Item, place: str, *names: str) -> None:
    for name in names:
        if getattr(item, name) is None:
            path = f"{place}.{name}"
            raise BadRequestError(Reason.INVALID_REQUEST, f"{path}: missing in a {item.type}.", param=path)
    for name in item.__struct_fields__:
        if name not in {"type", "id", "status"} | _FIELDS[item.type] and getattr(item, name) is not None:
            path = f"{place}.{name}"
            raise BadRequestError(Reason.INVALID_REQUEST, f"{path}: does not belong to a {item.type}.", param=path)
