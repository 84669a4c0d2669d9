"""Lets a CPU build of torch work beside the CUDA builds of torchvision, torchaudio and torchcodec.

PyPI has no CPU wheels of the three, and vLLM's CPU package depends on them. torchvision imports if two operators
are declared, and transformers' image processors and vLLM's Qwen-VL code need nothing but its Python part. The
other two fail at import, with errors that transformers and vLLM do not expect; hidden, they are not missed.
Beside wheels that fit their torch the guard does nothing.
"""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any, cast


def install() -> None:
    """Declares `torchvision::nms` and `torchvision::qnms`, hides torchaudio and torchcodec, each only if it must.

    Call before anything imports torchvision or transformers' processors; idempotent.
    """
    import torch

    if torch.version.cuda is not None:
        return
    if _is_cuda_build("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for package in ("torchaudio", "torchcodec"):
        if package not in sys.modules and _is_cuda_build(package):
            # None makes `import` an ImportError and `find_spec` answer "not there".
            cast(dict[str, Any], sys.modules)[package] = None


def platform_plugin() -> None:
    """The `vllm.platform_plugins` entry point: no platform, only the guard, early in every vLLM process."""
    install()


def _is_cuda_build(package: str) -> bool:
    """True if the installed wheel was built for CUDA; read from its text, since importing it would fail."""
    if sys.modules.get(package, package) is None:
        return False
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^__version__ = '[^']*\+cu\d", text, re.MULTILINE) is not None
