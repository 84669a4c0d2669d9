"""Counts a prompt's tokens exactly as the engine will, without the engine."""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import msgspec
from tokenizers import Tokenizer

from server.checkpoint import Checkpoint, CheckpointError
from server.errors import BadRequestError, Reason
from server.media.images import ImageSize
from server.prompt.chat_template import ChatTemplate, TemplateRefusalError
from server.requests.conversation import Conversation, template_messages


class PromptCount(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one prompt."""

    prompt_tokens: int
    """Text and images, the engine's `usage.prompt_tokens`."""
    image_tokens: tuple[int, ...]
    """One number for each image, in the order of the prompt: what its placeholder becomes."""
    image_starts: tuple[int, ...]
    """Tokens before each image's first."""
    longest: int = 0
    """Of several prompts in one request, the number of the longest: it is the one that windows are for."""
    other_tokens: int = 0
    """Of all the others together, a part of `prompt_tokens`."""

    @classmethod
    def of_several(cls, tokens: Sequence[int]) -> "PromptCount":
        """The count of plain prompts, each of which has a context of its own."""
        longest = max(range(len(tokens)), key=tokens.__getitem__)
        total = sum(tokens)
        return cls(
            prompt_tokens=total, image_tokens=(), image_starts=(), longest=longest, other_tokens=total - tokens[longest]
        )

    @property
    def window_tokens(self) -> int:
        """What has to fit into one context."""
        return self.prompt_tokens - self.other_tokens

    @property
    def total_image_tokens(self) -> int:
        """Tokens of all images together."""
        return sum(self.image_tokens)

    def with_image_tokens(self, image_tokens: Sequence[int]) -> "PromptCount":
        """The same prompt with images of other sizes."""
        changes = [new - old for new, old in zip(image_tokens, self.image_tokens, strict=True)]
        return PromptCount(
            prompt_tokens=self.prompt_tokens + sum(changes),
            image_tokens=tuple(image_tokens),
            image_starts=tuple(
                start + change for start, change in zip(self.image_starts, accumulate(changes, initial=0), strict=False)
            ),
        )


class PromptCounter:
    """Text through the checkpoint's tokenizer and chat template, images by its resize rule."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Loads the tokenizer.

        Raises:
            CheckpointError: this checkpoint's tokens cannot be counted.
        """
        source = checkpoint.path / "tokenizer.json"
        if not source.exists():
            raise CheckpointError(f"{source}: no such file; the gateway needs the fast tokenizer's file")
        self._tokenizer = Tokenizer.from_file(str(source))
        # The engine neither pads nor truncates, whatever the file says.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._rule = checkpoint.image_rule
        for token in self._rule.tokens:
            if self._tokenizer.token_to_id(token) is None:
                raise CheckpointError(f"{source}: no token {token!r}, which stands for an image or beside one")
        self._image_id = self._tokenizer.token_to_id(self._rule.placeholder)
        self._template = ChatTemplate(checkpoint.chat_template, checkpoint.special_tokens)
        self._tool_template = self._template
        if checkpoint.tool_template != checkpoint.chat_template:
            self._tool_template = ChatTemplate(checkpoint.tool_template, checkpoint.special_tokens)
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        self._reserved = tuple(sorted(special | set(self._rule.tokens)))

    def check_tools(self, conversation: Conversation) -> None:
        """Refuses tools, calls and their results where the model would not see them.

        Raises:
            BadRequestError: the chat template does not know tools.
        """
        place = conversation.uses_tools()
        if place is not None and not self._tool_template.knows_tools:
            raise BadRequestError(
                Reason.UNSUPPORTED_PARAMETER,
                f"{place}: this model's chat template does not show tools to the model; send none, or serve a "
                "checkpoint whose template does.",
                param=place,
            )

    def image_tokens(self, size: ImageSize) -> int:
        """Tokens of one image.

        Raises:
            ValueError: a shape the model does not accept.
        """
        return self._rule.count(size)

    def check_reserved(self, conversation: Conversation) -> None:
        """Refuses the model's control tokens typed as text, which would forge images or turns.

        Raises:
            BadRequestError: names the path and the token.
        """
        for number, prompt in enumerate(conversation.prompts):
            if isinstance(prompt, list):
                self._check_reserved_ids(prompt, conversation.prompt_path(number))
        normalizer = self._tokenizer.normalizer
        for path, text in chain(conversation.texts(), conversation.joined_texts()):
            normal = text if normalizer is None or text.isascii() else normalizer.normalize_str(text)
            for token in self._reserved:
                if token in text or (normal is not text and token in normal):
                    raise BadRequestError(
                        Reason.RESERVED_TOKEN,
                        f"{path} contains {token!r}, which is reserved for the model's own control tokens.",
                        param=path,
                    )

    def _check_reserved_ids(self, ids: list[int], path: str) -> None:
        for token in self._reserved:
            if self._tokenizer.token_to_id(token) in ids:
                raise BadRequestError(
                    Reason.RESERVED_TOKEN,
                    f"{path} contains the id of {token!r}, which is reserved for the model's own control tokens.",
                    param=path,
                )

    def _count_plain(self, prompt: str | list[int]) -> int:
        return len(self._ids(prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt)

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """As `encode` gives them, which also finds each token's place in the text."""
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def count(self, conversation: Conversation, sizes: list[ImageSize], **variables: Any) -> PromptCount:
        """Counts the whole prompt.

        Args:
            conversation: checked by `check_reserved`.
            sizes: every image's size, in the order of the prompt.
            variables: further variables of the chat template.

        Raises:
            BadRequestError: the chat template refuses the conversation, or does not show every image to the model.
        """
        if conversation.prompts:
            return PromptCount.of_several([self._count_plain(prompt) for prompt in conversation.prompts])
        template = self._template if conversation.tools is None else self._tool_template
        rendered = template_messages(conversation.messages, knows_developer=template.knows_developer)
        try:
            text = template.render(rendered, tools=conversation.template_tools(), **variables)
        except TemplateRefusalError as error:
            raise BadRequestError(
                Reason.INVALID_REQUEST,
                f"The model's chat template refuses these messages: {error}",
                param=conversation.name,
            ) from None
        ids = self._ids(text, add_special_tokens=False)
        places = [place for place, token in enumerate(ids) if token == self._image_id]
        if len(places) != len(sizes):
            raise BadRequestError(
                Reason.INVALID_REQUEST,
                f"The model's chat template shows {len(places)} of {len(sizes)} images to the model; "
                "move the images to messages of the user.",
                param=conversation.name,
            )
        tokens = tuple(self.image_tokens(size) for size in sizes)
        starts = []
        before = 0
        for place, count in zip(places, tokens, strict=True):
            starts.append(place + before)
            before += count - 1
        return PromptCount(prompt_tokens=len(ids) + before, image_tokens=tokens, image_starts=tuple(starts))
