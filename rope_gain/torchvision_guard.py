"""Lets a CUDA build of torchvision import beside a CPU build of torch.

PyPI has no CPU wheel of torchvision. Its CUDA wheel imports only if two operators are declared, and
transformers' image processors and vLLM's Qwen-VL code need nothing but its Python part. The guard declares
the operators; beside a torchvision that fits its torch it does nothing.
"""

import importlib.util
import re
from pathlib import Path


def install() -> bool:
    """Declares `torchvision::nms` and `torchvision::qnms` where the installed torchvision cannot.

    Call before anything imports torchvision; idempotent.

    Returns:
        True if the operators were declared by this call.
    """
    import torch

    if not _is_mismatched(torch.version.cuda) or hasattr(torch.ops.torchvision, "nms"):
        return False
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return True


def platform_plugin() -> None:
    """The `vllm.platform_plugins` entry point: no platform, only the guard, early in every vLLM process."""
    install()


def _is_mismatched(torch_cuda: str | None) -> bool:
    """True if torchvision is a CUDA build and torch is not; read from its text, importing it would fail."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or torch_cuda is not None:
        return False
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^__version__ = '[^']*\+cu\d", text, re.MULTILINE) is not None
