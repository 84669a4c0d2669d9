"""A request's messages: their shape, and the form in which the engine hands them to the chat template."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from server.requests.tools import Tool, ToolCall, template_tool, template_tool_call, walk_strings

# The engine drops this line from system messages before rendering (vllm.renderers.chat_utils).
BILLING_HEADER = "x-anthropic-billing-header"
NULL = msgspec.Raw(b"null")
RAW_STRING = msgspec.Meta(extra_json_schema={"type": ["string", "null"]})


class ImageUrl(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The `image_url` object of a content part, with either `url` or `file_id`."""

    url: Annotated[msgspec.Raw, RAW_STRING] = msgspec.field(default_factory=lambda: NULL)
    """A string, still as JSON: a slice of the request's body, so that images are not copied. It may be a file's id."""
    file_id: str | None = None
    detail: Literal["auto", "high"] = "auto"

    def __post_init__(self) -> None:
        if (bytes(memoryview(self.url)[:4]) == b"null") == (self.file_id is None):
            raise ValueError("Expected either `url` or `file_id`")
        if self.file_id is not None:
            self.url = msgspec.Raw(msgspec.json.encode(self.file_id))


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A content part of text."""

    text: str


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    """A content part of one image."""

    WRITTEN_AS: ClassVar[str] = "image_url"
    image_url: ImageUrl


class UploadedFile(msgspec.Struct, forbid_unknown_fields=True):
    """The `file` object of a content part."""

    file_id: str


class FilePart(msgspec.Struct, tag_field="type", tag="file", forbid_unknown_fields=True):
    """A content part of one uploaded file, which is an image: nothing else can be uploaded."""

    WRITTEN_AS: ClassVar[str] = "file"
    file: UploadedFile

    @property
    def image_url(self) -> ImageUrl:
        """The same as an image's part says it."""
        return ImageUrl(file_id=self.file.file_id)


ChatPart = TextPart | ImagePart | FilePart
IMAGE_PARTS = (ImagePart, FilePart)


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message; the fields after `name` are what a client replays from an answer, most of them null."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ChatPart] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def parts(self) -> list[ChatPart]:
        """The content as parts: a string is one part of text, nothing is no part."""
        if self.content is None:
            return []
        return [TextPart(text=self.content)] if isinstance(self.content, str) else self.content


class ImageSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where one image of a request comes from."""

    path: str
    """`messages[0].content[17].image_url`"""
    part: ImagePart | FilePart


class Place(msgspec.Struct, frozen=True):
    """Where in a request a message is."""

    message: str
    """`messages[0]`"""
    content: str
    """`messages[0].content`"""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is shown: messages, or for completions a plain prompt; and where the client wrote it."""

    messages: list[Message]
    name: str
    """The parameter that holds them."""
    places: tuple[Place, ...] = ()
    """Where each message is; `messages[0]`, `messages[1]` and so on unless given."""
    tools: list[Tool] | None = None
    prompts: Sequence[str | list[int]] = ()
    """Texts or their tokens, in place of messages: each is answered on its own."""

    def __post_init__(self) -> None:
        if not self.places:
            paths = [f"{self.name}[{i}]" for i in range(len(self.messages))]
            msgspec.structs.force_setattr(self, "places", tuple([Place(path, f"{path}.content") for path in paths]))

    def prompt_path(self, number: int) -> str:
        """Where a prompt is."""
        return self.name if len(self.prompts) == 1 else f"{self.name}[{number}]"

    def walk(self) -> Iterator[tuple[Place, Message]]:
        """Place and message, in order."""
        return zip(self.places, self.messages, strict=True)

    def images(self) -> Iterator[ImageSource]:
        """Every image, in the order of the prompt."""
        for place, message in self.walk():
            for j, part in enumerate(message.parts()):
                if isinstance(part, IMAGE_PARTS):
                    yield ImageSource(path=f"{place.content}[{j}].{part.WRITTEN_AS}", part=part)

    def num_earlier_images(self) -> int:
        """Images before the last turn, which begins after the last answer: the engine has seen them before."""
        total = earlier = 0
        for message in self.messages:
            total += sum(isinstance(part, IMAGE_PARTS) for part in message.parts())
            if message.role == "assistant":
                earlier = total
        return earlier

    def texts(self) -> Iterator[tuple[str, str]]:
        """Path and text of every string that the chat template may put into the prompt, each once."""
        for number, prompt in enumerate(self.prompts):
            if isinstance(prompt, str):
                yield self.prompt_path(number), prompt
        for place, message in self.walk():
            if isinstance(message.content, str):
                yield place.content, message.content
            else:
                for j, part in enumerate(message.parts()):
                    if isinstance(part, TextPart):
                        yield f"{place.content}[{j}].text", part.text
            for field in ("name", "reasoning", "reasoning_content", "tool_call_id"):
                text = getattr(message, field)
                if text is not None:
                    yield f"{place.message}.{field}", text
            for j, call in enumerate(message.tool_calls or ()):
                for text in walk_strings(template_tool_call(call)):
                    yield f"{place.message}.tool_calls[{j}]", text
        for i, tool in enumerate(self.tools or ()):
            for text in walk_strings(template_tool(tool)):
                yield f"tools[{i}]", text

    def uses_tools(self) -> str | None:
        """The first place in which there are tools, calls or their results."""
        if self.tools:
            return "tools"
        for place, message in self.walk():
            if message.tool_calls:
                return f"{place.message}.tool_calls"
            if message.role == "tool":
                return place.message
        return None

    def template_tools(self) -> list[dict[str, Any]] | None:
        """The tools as the engine passes them to the template."""
        return None if self.tools is None else [template_tool(tool) for tool in self.tools]

    def joined_texts(self) -> Iterator[tuple[str, str]]:
        """Path and joined texts of messages of several: templates put nothing between, so the model sees one text."""
        for place, message in self.walk():
            texts = [part.text for part in message.parts() if isinstance(part, TextPart)]
            if len(texts) > 1:
                yield place.content, "".join(texts)


def template_messages(messages: list[Message], *, knows_developer: bool) -> list[dict[str, Any]]:
    """The messages as vLLM passes them to the template (`chat_utils.parse_chat_messages`, "openai" format)."""
    rendered = [_template_message(message) for message in messages]
    if any(message["role"] == "developer" for message in rendered) and not knows_developer:
        rendered = _merge_system(
            [
                {"role": "system", **{name: value for name, value in message.items() if name not in ("role", "tools")}}
                if message["role"] == "developer"
                else message
                for message in rendered
            ]
        )
    return rendered


def _template_message(message: Message) -> dict[str, Any]:
    parts = message.parts()
    if message.role == "system":
        parts = list(_without_billing_header(parts))
    content = [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"} for part in parts
    ]
    rendered: dict[str, Any] = {"role": message.role, "content": content}
    if message.role == "assistant":
        rendered |= _assistant_fields(message)
    elif message.role == "tool":
        rendered["tool_call_id"] = message.tool_call_id
        if all(isinstance(part, TextPart) for part in parts):
            rendered["content"] = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    elif message.role == "developer":
        rendered["tools"] = None
    if message.name is not None:
        rendered["name"] = message.name
    return rendered


def _assistant_fields(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    reasoning = message.reasoning if message.reasoning is not None else message.reasoning_content
    if reasoning is not None:
        fields = {"reasoning": reasoning, "reasoning_content": reasoning}
    if message.tool_calls:
        fields["tool_calls"] = [template_tool_call(call) for call in message.tool_calls]
    return fields


def _without_billing_header(parts: list[ChatPart]) -> Iterator[ChatPart]:
    for part in parts:
        if isinstance(part, TextPart) and part.text.startswith(BILLING_HEADER):
            rest = part.text.partition("\n")[2]
            if rest:
                yield TextPart(text=rest)
        else:
            yield part


def _merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All system messages as one at the start, where any but the first is one (`hf._consolidate_system_messages`)."""
    if not any(message["role"] == "system" for message in messages[1:]):
        return messages
    texts = [
        "\n".join(part["text"] for part in message["content"] if "text" in part)
        for message in messages
        if message["role"] == "system"
    ]
    merged = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [merged, *(message for message in messages if message["role"] != "system")]
