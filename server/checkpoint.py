"""What the gateway needs to know of a checkpoint folder, read once and never changed.

The folder is an ordinary Hugging Face one (config.json, processor_config.json or preprocessor_config.json,
tokenizer.json, tokenizer_config.json, chat_template.jinja), with laid.json where LAid made or measured it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QWEN_FAMILY = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class CheckpointError(ValueError):
    """A folder that cannot be served; the message says which file and which key."""


@dataclass(frozen=True, kw_only=True)
class ImageRule:
    """How the model's image processor sizes an image (transformers' `smart_resize`)."""

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int


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
    image_token: str
    """The placeholder that stands once for an image in the prompt's text."""
    chat_template: str
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
    config = _read_json(path / "config.json")
    model_type = config.get("model_type")
    if model_type not in QWEN_FAMILY:
        raise CheckpointError(
            f"{path / 'config.json'}: model_type {model_type!r}; the gateway counts image tokens for "
            f"{', '.join(QWEN_FAMILY)}"
        )
    text_config = config.get("text_config", config)
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    return Checkpoint(
        path=path,
        model_type=model_type,
        dtype=config.get("dtype") or config.get("torch_dtype"),
        context_length=int(_require(text_config, "max_position_embeddings", path / "config.json")),
        image_rule=_read_image_rule(path, config),
        image_token=tokenizer_config.get("image_token") or "<|image_pad|>",
        chat_template=_read_chat_template(path, tokenizer_config),
        special_tokens=_named_tokens(tokenizer_config),
        effective_window=_read_effective_window(path / "laid.json"),
    )


def _read_image_rule(path: Path, config: dict[str, Any]) -> ImageRule:
    """Sizes as transformers' `Qwen2VLImageProcessor.__init__` resolves them; the patch from config.json, as in vLLM."""
    source = path / "processor_config.json"
    processor = _read_json(source).get("image_processor") if source.exists() else None
    if processor is None:
        source = path / "preprocessor_config.json"
        processor = _read_json(source)
    size = dict(processor.get("size") or {})
    for edge, alias in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        if processor.get(alias) is not None:
            size[edge] = processor[alias]
    if processor.get("do_resize", True) is not True:
        raise CheckpointError(f"{source}: do_resize false; the gateway counts resized images only")
    vision = _require(config, "vision_config", path / "config.json")
    return ImageRule(
        patch_size=int(_require(vision, "patch_size", path / "config.json")),
        merge_size=int(_require(vision, "spatial_merge_size", path / "config.json")),
        min_pixels=int(_require(size, "shortest_edge", source)),
        max_pixels=int(_require(size, "longest_edge", source)),
    )


def _read_chat_template(path: Path, tokenizer_config: dict[str, Any]) -> str:
    """The template that vLLM uses: the processor's before the tokenizer's (`vllm.renderers.hf`)."""
    jinja, legacy = path / "chat_template.jinja", path / "chat_template.json"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    template = _read_json(legacy).get("chat_template") if legacy.exists() else tokenizer_config.get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{path}: no chat template; expected chat_template.jinja")
    return template


def _named_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
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
    measured = _read_json(path).get("effective_window")
    if measured is None:
        return None
    threshold = _require(measured, "threshold", path)
    for window in _require(measured, "windows", path):
        if window.get("kind") == "absolute" and window.get("threshold") == threshold:
            numbers = ("tokens", "tokens_low", "tokens_high", "images", "images_low", "images_high")
            return EffectiveWindow(
                **{name: float(_require(window, name, path)) for name in numbers},
                threshold=float(threshold),
                confidence=float(_require(measured, "confidence", path)),
                task=str(_require(measured, "task", path)),
                censored=bool(window.get("censored", False)),
            )
    raise CheckpointError(f"{path}: effective_window.windows has no absolute entry at threshold {threshold}")


def _require(mapping: dict[str, Any], key: str, source: Path) -> Any:
    if key not in mapping:
        raise CheckpointError(f"{source}: key {key!r} is missing")
    return mapping[key]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; is {path.parent} a checkpoint folder?")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content
