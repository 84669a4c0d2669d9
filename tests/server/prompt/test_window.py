"""What becomes of prompts around the effective window, by each policy, and what the client is told."""

from typing import Any

import pytest

from server.checkpoint import EffectiveWindow
from server.errors import BadRequestError, Reason
from server.families.qwen_vl import QwenRule
from server.media.images import ImageSize
from server.prompt.length import LengthLimits, Prompt
from server.prompt.prompt_counter import PromptCount
from server.prompt.window import Windows, WindowUse
from server.prompt.window_policy import WindowPolicy, choose_policy

RULE = QwenRule(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)
WINDOW = EffectiveWindow(
    tokens=100.4,
    tokens_low=90.0,
    tokens_high=110.0,
    images=20.0,
    images_low=18.0,
    images_high=22.0,
    threshold=0.6,
    confidence=0.95,
    task="miniature/open",
    censored=False,
)


def prompt_of(images: list[int], *, text: int = 20, max_tokens: int | None = None) -> tuple[Prompt, list[ImageSize]]:
    """A prompt with square images of these sides in front of its text."""
    sizes = [ImageSize(width=side, height=side) for side in images]
    tokens = tuple(RULE.count(size) for size in sizes)
    starts = tuple(sum(tokens[:place]) for place in range(len(tokens)))
    count = PromptCount(prompt_tokens=text + sum(tokens), image_tokens=tokens, image_starts=starts)
    paths = [f"messages[0].content[{place}].image_url" for place in range(len(images))]
    return Prompt(
        count=count, image_paths=paths, name="messages", max_tokens=max_tokens, max_tokens_name="max_tokens"
    ), sizes


def admit(
    prompt: Prompt,
    sizes: list[ImageSize],
    policy: str,
    *,
    first: int = 0,
    earlier: dict[int, ImageSize] | None = None,
    effective: EffectiveWindow | None = WINDOW,
    max_prompt_tokens: int | None = None,
) -> WindowUse:
    limits = LengthLimits(context_length=200, max_prompt_tokens=max_prompt_tokens)
    return Windows(limits, effective, RULE).admit(
        prompt, sizes, WindowPolicy(policy), first=first, earlier=earlier or {}
    )


def refusal(*arguments: Any, **options: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as refused:
        admit(*arguments, **options)
    return refused.value


@pytest.mark.parametrize("policy", ["warn", "reject", "fit"])
def test_a_prompt_that_just_fits_passes_untouched(policy: str) -> None:
    prompt, sizes = prompt_of([128], text=36)

    use = admit(prompt, sizes, policy)

    assert use.count is prompt.count
    assert use.count.prompt_tokens == 100
    assert use.headers() == {
        "x-laid-prompt-tokens": "100",
        "x-laid-image-tokens": "64",
        "x-laid-window-use": "0.500",
        "x-laid-effective-window-use": "0.996",
    }


def test_warn_answers_with_a_warning() -> None:
    headers = admit(*prompt_of([128], text=37), "warn").headers()

    assert headers["x-laid-effective-window-use"] == "1.006"
    assert headers["x-laid-warning"] == (
        "The prompt of 101 tokens is 1 more than the effective window of 100 tokens (90 to 110 at 95% "
        "confidence), within which the model's accuracy on miniature/open stays at or above 60%; expect worse answers."
    )


def test_a_warning_is_ascii_whatever_the_task_is_called() -> None:
    headers = admit(
        *prompt_of([128], text=37), "warn", effective=EffectiveWindow(**vars(WINDOW) | {"task": "長い\r\nx: y"})
    ).headers()

    assert headers["x-laid-warning"].isascii()
    assert headers["x-laid-warning"].isprintable()


def test_reject_teaches() -> None:
    error = refusal(*prompt_of([64, 64, 128], text=20), "reject")

    assert (error.status, error.reason, error.param) == (400, Reason.EFFECTIVE_WINDOW_EXCEEDED, "messages")
    assert error.message == (
        "The prompt takes 116 tokens, 96 of them for 3 images: 16 more than the effective window of 100 tokens "
        "(90 to 110 at 95% confidence), within which the model's accuracy on miniature/open stays at or above 60%. "
        "Every image fits; the text after them does not. Send fewer or smaller images, or let the server scale them "
        "down with the header x-laid-window-policy: fit."
    )


def test_reject_names_the_first_image_beyond() -> None:
    error = refusal(*prompt_of([128, 128, 32], text=20), "reject")

    assert "The first image that does not fit is messages[0].content[1].image_url (64 tokens)." in error.message


def test_without_a_window_nothing_is_rejected() -> None:
    use = admit(*prompt_of([128, 128], text=20), "reject", effective=None)

    assert use.headers()["x-laid-effective-window-use"] == "unknown"
    assert use.warning is None


def test_a_lower_bound_is_called_one() -> None:
    effective = EffectiveWindow(**vars(WINDOW) | {"censored": True})

    assert "window of at least 100 tokens" in refusal(*prompt_of([128], text=50), "reject", effective=effective).message


def test_fit_scales_the_last_turn_alone() -> None:
    prompt, sizes = prompt_of([64, 128, 128], text=20)

    use = admit(prompt, sizes, "fit", first=1)

    assert use.fitted == {1: ImageSize(width=80, height=80), 2: ImageSize(width=80, height=80)}
    assert use.count.image_tokens == (16, 25, 25)
    assert use.count.image_starts == (0, 16, 41)
    assert use.original is prompt.count
    headers = use.headers()
    assert headers["x-laid-prompt-tokens"] == "86"
    assert headers["x-laid-fitted-images"] == "2"
    assert headers["x-laid-original-prompt-tokens"] == "164"
    assert headers["x-laid-original-image-tokens"] == "144"
    assert "x-laid-warning" not in headers


def test_fit_says_when_the_last_turn_is_not_enough() -> None:
    error = refusal(*prompt_of([128, 64], text=40), "fit", first=1)

    assert error.reason is Reason.EFFECTIVE_WINDOW_EXCEEDED
    assert error.message.startswith("The prompt takes 120 tokens, 80 of them for 2 images: 20 more than")
    assert error.message.endswith(
        " Scaled down as far as sensible, the images of the last turn (1) leave 108 tokens; those of earlier turns are "
        "not touched. Send fewer or smaller images."
    )


def test_fit_without_images_in_the_last_turn() -> None:
    error = refusal(*prompt_of([128], text=50), "fit", first=1)

    assert "There are no images in the last turn to scale down" in error.message


@pytest.mark.parametrize(
    ("options", "max_tokens", "expected"),
    [
        ({"effective": None}, None, 196),
        ({"effective": None}, 50, 146),
        ({"effective": None, "max_prompt_tokens": 120}, 50, 120),
        ({"max_prompt_tokens": 90}, None, 90),
        ({}, 150, 50),
    ],
)
def test_fit_heeds_the_nearest_of_all_limits(options: dict[str, Any], max_tokens: int | None, expected: int) -> None:
    use = admit(*prompt_of([128] * 4, text=20, max_tokens=max_tokens), "fit", **options)

    assert use.count.prompt_tokens <= expected < use.count.prompt_tokens + 4 * 17


def test_beyond_the_context_nothing_helps_but_fit() -> None:
    prompt, sizes = prompt_of([128] * 4, text=20)

    error = refusal(prompt, sizes, "warn")

    assert error.reason is Reason.CONTEXT_LENGTH_EXCEEDED
    assert error.message == (
        "This model's maximum context length is 200 tokens. The prompt takes 276 tokens, 256 of them for 4 images, "
        "and at least 1 must be left for the answer: 77 too many. The first image that does not fit is "
        "messages[0].content[3].image_url (64 tokens)."
    )
    assert admit(prompt, sizes, "fit").count.prompt_tokens <= 100


def test_the_servers_own_limit_is_told_as_such() -> None:
    error = refusal(*prompt_of([64, 64], text=20), "warn", max_prompt_tokens=50)

    assert error.reason is Reason.TOO_MANY_TOKENS
    assert error.message == (
        "This server takes prompts of at most 50 tokens. The prompt takes 52 tokens, 32 of them for 2 images: "
        "2 too many. Every image fits; the text after them does not."
    )


@pytest.mark.parametrize(
    ("asked", "default", "chosen"),
    [
        (None, "warn", "warn"),
        (None, "fit", "fit"),
        ("reject", "warn", "reject"),
        ("fit", "reject", "fit"),
        ("reject", "fit", "reject"),
        ("warn", "warn", "warn"),
    ],
)
def test_a_request_may_choose(asked: str | None, default: str, chosen: str) -> None:
    assert choose_policy(asked, WindowPolicy(default)) == chosen


@pytest.mark.parametrize(
    ("asked", "default", "message"),
    [
        ("warn", "reject", "x-laid-window-policy: 'warn', expected reject or fit."),
        ("warn", "fit", "x-laid-window-policy: 'warn', expected reject or fit."),
        ("none", "warn", "x-laid-window-policy: 'none', expected warn or reject or fit."),
    ],
)
def test_a_stricter_server_cannot_be_told_to_let_pass(asked: str, default: str, message: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        choose_policy(asked, WindowPolicy(default))

    assert refused.value.message == message


def test_images_of_earlier_turns_stay_as_they_were_fitted() -> None:
    """Sent again as 64 tokens each, the first two were shown as 4 and leave room for the third as it is."""
    prompt, sizes = prompt_of([128, 128, 96])
    shown = {0: ImageSize(width=32, height=32), 1: ImageSize(width=32, height=32)}

    alone = admit(prompt, sizes, "fit", first=2, earlier=shown)
    assert alone.fitted == shown
    assert alone.count.image_tokens == (4, 4, 36)
    assert alone.original.image_tokens == (64, 64, 36)

    prompt, sizes = prompt_of([128, 128, 128, 96])
    both = admit(prompt, sizes, "fit", first=2, earlier=shown)
    assert both.count.prompt_tokens <= WINDOW.tokens
    assert {place: both.fitted[place] for place in shown} == shown
    assert both.fitted.keys() > shown.keys()


def test_only_fit_keeps_to_what_was_fitted() -> None:
    prompt, sizes = prompt_of([96])

    assert admit(prompt, sizes, "warn", first=1, earlier={0: ImageSize(width=32, height=32)}).fitted == {}
