"""The effective window: how much of its context the model really uses, and what is done with a prompt beyond it."""

import math
from collections.abc import Mapping, Sequence

import msgspec

from server.checkpoint import EffectiveWindow
from server.errors import BadRequestError, Reason
from server.families import ImageRule
from server.media.images import ImageSize
from server.prompt.fit import fit_images
from server.prompt.length import LengthLimits, Prompt
from server.prompt.prompt_counter import PromptCount
from server.prompt.window_policy import POLICY_HEADER, WindowPolicy


class WindowUse(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt within its windows."""

    count: PromptCount
    """As the engine will see it."""
    original: PromptCount
    """As the client sent it; another than `count` only where images were fitted."""
    fitted: Mapping[int, ImageSize]
    """The new size of each image that was, by its place in the prompt."""
    context_length: int
    effective: EffectiveWindow | None

    @property
    def use(self) -> float:
        """Share of the context length."""
        return self.count.window_tokens / self.context_length

    @property
    def effective_use(self) -> float | None:
        """Share of the effective window; None where the checkpoint has none."""
        return None if self.effective is None else self.count.window_tokens / self.effective.tokens

    @property
    def warning(self) -> str | None:
        """One line for whoever reads the answer; None within the window."""
        if self.effective is None or self.count.window_tokens <= self.effective.tokens:
            return None
        excess = self.count.window_tokens - math.floor(self.effective.tokens)
        return (
            f"The prompt of {self.count.window_tokens} tokens is {excess} more than "
            f"{_describe(self.effective)}; expect worse answers."
        )

    def headers(self) -> dict[str, str]:
        """The same for a program."""
        effective_use = self.effective_use
        headers = {
            "x-laid-prompt-tokens": str(self.count.prompt_tokens),
            "x-laid-image-tokens": str(self.count.total_image_tokens),
            "x-laid-window-use": f"{self.use:.3f}",
            "x-laid-effective-window-use": "unknown" if effective_use is None else f"{effective_use:.3f}",
        }
        if self.fitted:
            headers["x-laid-fitted-images"] = str(len(self.fitted))
            headers["x-laid-original-prompt-tokens"] = str(self.original.prompt_tokens)
            headers["x-laid-original-image-tokens"] = str(self.original.total_image_tokens)
        if (warning := self.warning) is not None:
            headers["x-laid-warning"] = warning
        return headers


class Windows:
    """Decides on a counted prompt by all that limits its length."""

    def __init__(self, limits: LengthLimits, effective: EffectiveWindow | None, rule: ImageRule) -> None:
        self._limits = limits
        # A window of nothing tells of no prompt how good it is.
        self._effective = effective if effective is not None and effective.tokens >= 1 else None
        self._rule = rule

    def admit(
        self,
        prompt: Prompt,
        sizes: Sequence[ImageSize],
        policy: WindowPolicy,
        *,
        first: int,
        earlier: Mapping[int, ImageSize],
    ) -> WindowUse:
        """Fits the prompt where the policy says so, and refuses it where it is too long.

        Args:
            prompt: as the client sent it.
            sizes: of its images.
            policy: see `WindowPolicy`.
            first: the first image of the last turn; the engine may hold those before it in its cache.
            earlier: what images before it were scaled down to in their own turn, by place; `fit` keeps to it.

        Raises:
            BadRequestError: too long for the model, for this server's limits or, unless the policy is `warn`, for
                the effective window.
        """
        count, fitted, note = prompt.count, dict[int, ImageSize](), ""
        if policy is WindowPolicy.FIT:
            count, fitted, note = self._fit(prompt, sizes, first=first, earlier=earlier)
        seen = prompt if count is prompt.count else msgspec.structs.replace(prompt, count=count)
        self._limits.check(seen, note)
        if policy is not WindowPolicy.WARN:
            self._check_effective(seen, note)
        return self._use(count, prompt.count, fitted)

    def use(self, count: PromptCount) -> WindowUse:
        """What a prompt takes of the windows, whether or not it would be admitted."""
        return self._use(count, count, {})

    def _use(self, count: PromptCount, original: PromptCount, fitted: Mapping[int, ImageSize]) -> WindowUse:
        return WindowUse(
            count=count,
            original=original,
            fitted=fitted,
            context_length=self._limits.context_length,
            effective=self._effective,
        )

    def _fit(
        self, prompt: Prompt, sizes: Sequence[ImageSize], *, first: int, earlier: Mapping[int, ImageSize]
    ) -> tuple[PromptCount, dict[int, ImageSize], str]:
        """The prompt's count with smaller images, their sizes, and a note where that would not have been enough."""
        count, fitted = prompt.count, dict(earlier)
        if fitted:
            sizes = [fitted.get(place, size) for place, size in enumerate(sizes)]
            count = count.with_image_tokens([self._rule.count(size) for size in sizes])
        room = self._limits.room(prompt, self._end)
        if count.total_image_tokens <= room:
            return count, fitted, ""
        fit = fit_images(sizes, self._rule, first=first, max_image_tokens=room)
        fitted_count = count.with_image_tokens(fit.image_tokens)
        if fitted_count.total_image_tokens <= room:
            return fitted_count, {**fitted, **fit.sizes}, ""
        return count, fitted, _unfittable(len(sizes) - first, fitted_count.prompt_tokens)

    @property
    def _end(self) -> int | None:
        """Of the effective window, in tokens."""
        return None if self._effective is None else math.floor(self._effective.tokens)

    def _check_effective(self, prompt: Prompt, note: str) -> None:
        effective, end = self._effective, self._end
        if effective is None or end is None or prompt.count.window_tokens <= end:
            return
        raise BadRequestError(
            Reason.EFFECTIVE_WINDOW_EXCEEDED,
            f"{prompt.takes()}: {prompt.count.window_tokens - end} more than {_describe(effective)}. "
            f"{prompt.first_beyond(end)}{note} Send fewer or smaller images"
            + ("." if note else f", or let the server scale them down with the header {POLICY_HEADER}: fit."),
            param=prompt.name,
        )


def _unfittable(num_images: int, smallest_tokens: int) -> str:
    if num_images == 0:
        return " There are no images in the last turn to scale down; those of earlier turns are not touched."
    return (
        f" Scaled down as far as sensible, the images of the last turn ({num_images}) leave {smallest_tokens} tokens; "
        "those of earlier turns are not touched."
    )


def _describe(window: EffectiveWindow) -> str:
    """In printable ASCII, since headers carry it too."""
    reach = "at least " if window.censored else ""
    task = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in window.task)
    return (
        f"the effective window of {reach}{math.floor(window.tokens)} tokens "
        f"({window.tokens_low:.0f} to {window.tokens_high:.0f} at {window.confidence:.0%} confidence), within which "
        f"the model's accuracy on {task} stays at or above {window.threshold:.0%}"
    )
