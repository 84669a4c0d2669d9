"""Fills the engine's usage with what OpenAI's clients look for."""

from typing import Any

from server.prompt.prompt_counter import PromptCount


def complete_usage(usage: dict[str, Any], count: PromptCount) -> None:
    """Adds `image_tokens` and `text_tokens` to `prompt_tokens_details`, in place; vLLM's own details stay."""
    details = usage.get("prompt_tokens_details") or {}
    image_tokens = (details.pop("multimodal_tokens", None) or {}).get("image", count.total_image_tokens)
    details["image_tokens"] = image_tokens
    details["text_tokens"] = usage.get("prompt_tokens", count.prompt_tokens) - image_tokens
    details["cached_tokens"] = details.get("cached_tokens") or 0
    usage["prompt_tokens_details"] = details
