"""How long a prompt may be, and what a client is told whose prompt is longer."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from server.errors import BadRequestError, Reason
from server.prompt.prompt_counter import PromptCount


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A counted prompt, and the names that its parts have in the request."""

    count: PromptCount
    image_paths: Sequence[str]
    """`messages[0].content[17].image_url`, in the order of the prompt."""
    name: str
    """The parameter that holds it."""
    max_tokens: int | None
    """Tokens asked for as the answer; None: as many as fit."""
    max_tokens_name: str

    def takes(self) -> str:
        """How long it is, as the beginning of a sentence."""
        num_images = len(self.image_paths)
        return (
            f"The prompt takes {self.count.window_tokens} tokens, {self.count.total_image_tokens} of them for "
            f"{num_images} image{'s' if num_images != 1 else ''}"
        )

    def first_beyond(self, limit: int) -> str:
        """A sentence about the first image that ends after `limit` tokens."""
        for path, start, tokens in zip(self.image_paths, self.count.image_starts, self.count.image_tokens, strict=True):
            if start + tokens > limit:
                return f"The first image that does not fit is {path} ({tokens} tokens)."
        return "Every image fits; the text after them does not." if self.image_paths else "There are no images in it."


@dataclass(frozen=True, kw_only=True)
class LengthLimits:
    """In tokens; images have a budget of their own, which is checked when they are read."""

    context_length: int
    max_prompt_tokens: int | None
    """None: no limit beside the context length."""

    def check(self, prompt: Prompt, note: str = "") -> None:
        """Refuses a prompt that is too long for this server, or leaves no room for the answer it asks for.

        Args:
            prompt: what to check.
            note: a sentence to end the message with.

        Raises:
            BadRequestError: tells prompt tokens, image tokens, limit, excess and the first image that does not fit.
        """
        self._check_context(prompt, note)
        limit, tokens = self.max_prompt_tokens, prompt.count.window_tokens
        if limit is not None and tokens > limit:
            raise BadRequestError(
                Reason.TOO_MANY_TOKENS,
                f"This server takes prompts of at most {limit} tokens. {prompt.takes()}: {tokens - limit} too many. "
                f"{prompt.first_beyond(limit)}{note}",
                param=prompt.name,
            )

    def room(self, prompt: Prompt, further: int | None) -> int:
        """Tokens that the images of the prompt may take for it to stay within every limit, and within `further`."""
        limits = [self.context_length - (prompt.max_tokens or 1), self.max_prompt_tokens, further]
        text = prompt.count.prompt_tokens - prompt.count.total_image_tokens
        return min(limit for limit in limits if limit is not None) - text

    def _check_context(self, prompt: Prompt, note: str) -> None:
        limit, tokens, asked = self.context_length, prompt.count.window_tokens, prompt.max_tokens
        if tokens >= limit:
            raise BadRequestError(
                Reason.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {limit} tokens. {prompt.takes()}, and at least 1 must be left "
                f"for the answer: {tokens + 1 - limit} too many. {prompt.first_beyond(limit - 1)}{note}",
                param=prompt.name,
            )
        if asked is not None and tokens + asked > limit:
            # vLLM would shorten the answer without a word.
            raise BadRequestError(
                Reason.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {limit} tokens. The prompt takes {tokens} "
                f"and {prompt.max_tokens_name} asks for {asked}: {tokens + asked - limit} too many. "
                f"Ask for at most {limit - tokens}.{note}",
                param=prompt.max_tokens_name,
            )
