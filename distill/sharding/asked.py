"""Whether the processes were started to share a student, and by what, as `accelerate launch` hands it on."""

import importlib.util
import os
from typing import Literal

Sharding = Literal["fsdp2", "zero3"]

FSDP2_EXAMPLE = "distill/recipes/accelerate/fsdp2.yaml"
ZERO3_EXAMPLE = "distill/recipes/accelerate/zero3.yaml"

# Of Accelerate's settings: what Accelerate takes for one that is not set, and what a student can be sharded with.
# Whatever else it hands on changes nothing, or is obeyed.
_FSDP2_SETTINGS = {
    "FSDP_VERSION": ("1", "2"),
    "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", "TRANSFORMER_BASED_WRAP"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("", ""),
    "FSDP_IGNORED_MODULES": ("", ""),
    "FSDP_OFFLOAD_PARAMS": ("false", "false"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "false"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "false"),
}


def asked_sharding() -> Sharding | None:
    """By what the processes were started to share a student; None where each is to have a whole one.

    Raises:
        ValueError: they are to share it in another way, Accelerate's settings ask for what would not happen, or
            DeepSpeed is not installed.
    """
    if _is_true("ACCELERATE_USE_MEGATRON_LM"):
        raise ValueError(
            "accelerate: configured for MEGATRON_LM, expected one process, data parallelism, FSDP2 or DeepSpeed: a "
            f"student is sharded by: accelerate launch --config_file {FSDP2_EXAMPLE}"
        )
    if _is_true("ACCELERATE_USE_DEEPSPEED"):
        _check_deepspeed()
        return "zero3"
    if _is_true("ACCELERATE_USE_FSDP"):
        _check_fsdp2()
        return "fsdp2"
    return None


def _check_fsdp2() -> None:
    for name, (default, expected) in _FSDP2_SETTINGS.items():
        found = os.environ.get(name, default)
        if found.lower() != expected.lower():
            raise ValueError(
                f"accelerate: {name.lower()}: {found!r}, expected {expected or 'none'!r}, as in {FSDP2_EXAMPLE}; "
                "decoder layers are sharded one by one, and train.gradient_checkpointing recomputes them"
            )
    _check_launched("FSDP")


def _check_deepspeed() -> None:
    """The settings that DeepSpeed reads itself are checked where Accelerate has put them together."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            "accelerate: configured for DeepSpeed, which is not installed; install it with: pip install deepspeed, or "
            f"shard by FSDP2: accelerate launch --config_file {FSDP2_EXAMPLE}"
        )
    if _is_true("ACCELERATE_DEEPSPEED_ZERO3_INIT"):
        raise ValueError(
            f"accelerate: zero3_init_flag: true, expected false, as in {ZERO3_EXAMPLE}; models are loaded whole, and "
            "the student is then cut tensor by tensor"
        )
    if _is_true("ACCELERATE_USE_CPU"):
        raise ValueError(
            "accelerate: configured for DeepSpeed and for a CPU, where Accelerate leaves DeepSpeed out; expected "
            "use_cpu: false and no ACCELERATE_USE_CPU: without a GPU the processes run on CPUs of themselves"
        )
    _check_launched("DeepSpeed")


def _check_launched(kind: str) -> None:
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(f"accelerate: configured for {kind} in one process alone, expected `accelerate launch`")


def _is_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
