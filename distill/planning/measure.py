"""Trains a few steps for real and measures the memory they took, to hold a plan against.

    python -m distill.planning.measure recipe.yaml STEPS [key=value ...]

What is compared: the process's largest resident set (`VmHWM`) less its resident set after it has trained two
steps of the smallest kind on the miniature models. That training loads every library and makes every buffer that
does not depend on the recipe; what comes on top is weights, gradients, optimizer states, activations, caches. glibc
is told to give freed blocks back at once, so that the resident set is what is in use and not what was. On a GPU the
figure is torch's own peak of allocated memory, which needs no such care.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import distill
from distill.config import load_config
from distill.recipe import Recipe
from rope_gain import wheel_guard

_MINIATURE = Path(distill.__file__).parent / "recipes" / "miniature.yaml"
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}
"""For the environment: blocks of 64 KiB and more come from the kernel and go back to it."""
_SMALLEST = ("data.tokens_per_step=1", "train.steps=2")


def measure_peak_bytes(recipe: Path, overrides: Sequence[str], steps: int) -> int:
    """Peak memory of the run's first steps, in a process of its own.

    Raises:
        ValueError: the run failed; its own message is on standard error.
    """
    arguments = [sys.executable, "-m", "distill.planning.measure", str(recipe), str(steps), *overrides]
    environment = {**os.environ, **GIVE_BACK}
    finished = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise ValueError(f"the measured run ended with exit code {finished.returncode}")
    return int(json.loads(finished.stdout)["peak_bytes"])


def main(arguments: Sequence[str]) -> int:
    """Prints {"peak_bytes": …} of a recipe's first steps."""
    wheel_guard.install()
    recipe, steps, *overrides = arguments
    config = load_config(Recipe, Path(recipe), overrides)
    before = warmed_up_bytes(config)
    device = _train(Path(recipe), (*overrides, f"train.steps={steps}"))
    if device == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated()
    else:
        # Not ru_maxrss: a child takes that over from the process that started it.
        peak = status_bytes("VmHWM") - before
    print(json.dumps({"peak_bytes": peak}))
    return 0


def warmed_up_bytes(recipe: Recipe) -> int:
    """This process's resident memory after it has trained the smallest run that loads what this recipe's does."""
    # Accelerate keeps both for the life of a process.
    alike = [f"train.mixed_precision={recipe.train.mixed_precision}", f"train.device={recipe.train.device}"]
    if recipe.lora is not None:
        # PEFT imports a good part of what is installed.
        alike.append("lora.rank=1")
    _train(_MINIATURE, (*_SMALLEST, *alike))
    return status_bytes("VmRSS")


def _train(path: Path, overrides: Sequence[str]) -> str:
    """Trains in a folder that goes away; returns the kind of device."""
    from distill.assembly import assemble
    from distill.interrupt import StopRequest
    from distill.loading import choose_device

    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        recipe = load_config(Recipe, path, [*overrides, f"output={folder}"])
        run = assemble(recipe, state_path=Path(folder) / "state.pt", log_path=Path(folder) / "log.jsonl")
        run.trainer.run(stop)
    del run
    gc.collect()
    return choose_device(recipe.train).type


def status_bytes(name: str) -> int:
    """A figure of this process's memory, as Linux gives it: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
