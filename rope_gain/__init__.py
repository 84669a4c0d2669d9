"""Learnable RoPE response gain (LAid, arXiv 2512.21576) for Hugging Face transformers and vLLM."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rope_gain.attachment import attach, detach, gain_modules
    from rope_gain.checkpoint import load_pretrained, save_pretrained
    from rope_gain.config import RopeGainConfig
    from rope_gain.folding import fold
    from rope_gain.gain import RopeGain

__all__ = [
    "RopeGain",
    "RopeGainConfig",
    "attach",
    "detach",
    "fold",
    "gain_modules",
    "load_pretrained",
    "save_pretrained",
]

_HOMES = {
    "RopeGain": "gain",
    "RopeGainConfig": "config",
    "attach": "attachment",
    "detach": "attachment",
    "fold": "folding",
    "gain_modules": "attachment",
    "load_pretrained": "checkpoint",
    "save_pretrained": "checkpoint",
}


def __getattr__(name: str) -> object:
    """Imports on first use: vLLM imports this package in every process, most of which need none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
