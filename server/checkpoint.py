"""What the gateway needs to know of a checkpoint folder, read once and never changed.

The folder is an ordinary Hugging Face one (config.json, processor_config.json or preprocessor_config.json,
tokenizer.json, tokenizer_config.json, chat_template.jinja), with laid.json where LAid made or measured it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.families import ImageRule, ProcessorFiles, read_image_rule, read_processor_files
from server.families.processor_files import CheckpointError, read_json, require

__all__ = ["Checkpoint", "CheckpointError", "EffectiveWindow", "read_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class EffectiveWindow:
    """How much of its context the model really uses, as `distill evaluate` measured it."""

    tokens: float
    tokens_low: float
    tokens_high: float
    images: float
    images_low: float
    images_high: float
    threshold: float
    confidence: float
    task: str
    censored: bool
    """True if accuracy never fell below the threshold: the numbers are then lower bounds."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One served checkpoint."""

    path: Path
    model_type: str
    dtype: str | None
    context_length: int
    image_rule: ImageRule
    chat_template: str
    tool_template: str
    """The chat template of requests with tools."""
    special_tokens: dict[str, str]
    """Named special tokens (`eos_token` and so on) that the chat template may use."""
    effective_window: EffectiveWindow | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads and checks a checkpoint folder.

    Raises:
        CheckpointError: a file or key is missing, or the family is not one whose tokens can be counted.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; expected a checkpoint folder with config.json")
    files = read_processor_files(path)
    config = files.config
    text_config = config.get("text_config", config)
    return Checkpoint(
        path=path,
        model_type=str(config.get("model_type")),
        dtype=config.get("dtype") or config.get("torch_dtype"),
        context_length=int(require(text_config, "max_position_embeddings", path / "config.json")),
        image_rule=read_image_rule(files),
        chat_template=_read_chat_template(files),
        tool_template=_read_tool_template(files),
        special_tokens=_named_tokens(files.tokenizer),
        effective_window=_read_effective_window(path / "laid.json"),
    )


def _read_chat_template(files: ProcessorFiles) -> str:
    """The template that vLLM uses: the processor's before the tokenizer's (`vllm.renderers.hf`)."""
    jinja, legacy = files.path / "chat_template.jinja", files.path / "chat_template.json"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    template = read_json(legacy).get("chat_template") if legacy.exists() else files.tokenizer.get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{files.path}: no chat template; expected chat_template.jinja")
    return template


def _read_tool_template(files: ProcessorFiles) -> str:
    """The template that vLLM uses as soon as there are tools: the tokenizer's before the processor's."""
    template = files.tokenizer.get("chat_template")
    if (files.path / "chat_template.jinja").exists() or not isinstance(template, str):
        return _read_chat_template(files)
    return template


def _named_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Every `*_token` of tokenizer_config.json, as transformers' `special_tokens_map` gives them to the template."""
    named = {}
    for name, value in tokenizer_config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            named[name] = content
    return named


def _read_effective_window(path: Path) -> EffectiveWindow | None:
    if not path.exists():
        return None
    measured = read_json(path).get("effective_window")
    if measured is None:
        return None
    threshold = require(measured, "threshold", path)
    for window in require(measured, "windows", path):
        if window.get("kind") == "absolute" and window.get("threshold") == threshold:
            numbers = ("tokens", "tokens_low", "tokens_high", "images", "images_low", "images_high")
            return EffectiveWindow(
                **{name: float(require(window, name, path)) for name in numbers},
                threshold=float(threshold),
                confidence=float(require(measured, "confidence", path)),
                task=str(require(measured, "task", path)),
                censored=bool(window.get("censored", False)),
            )
    raise CheckpointError(f"{path}: effective_window.windows has no absolute entry at threshold {threshold}")
