"""`distill plan`: what a recipe will cost, before anything is loaded."""

import argparse
import json
from pathlib import Path

from distill.config import load_config
from distill.recipe import Recipe
from rope_gain import wheel_guard

_EXAMPLES = """examples:
  distill plan distill/recipes/miniature.yaml
  distill plan distill/recipes/qwen2.5-vl-7b.yaml --tflops 400        what the GPU reaches in training
  distill plan recipe.yaml train.gradient_checkpointing=true --memory 80     what of the matching fits into 80 GiB
  distill plan distill/recipes/miniature.yaml --measure 10            train 10 steps, compare the memory
  distill plan recipe.yaml teacher.recording=runs/signals             as after distill record
  distill plan recipe.yaml teacher.quantization=bitsandbytes_4bit teacher.device=cuda:1
  distill plan recipe.yaml --images 50 --image-size 1024x768 --json

Samples that are not there yet are assumed: see the defaults below. Sizes of models come from config.json: from the
model's folder, from the local Hub cache, or, for the models of distill/recipes/, from distill/recipes/shapes/.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="say what a recipe will cost: bytes, operations, seconds",
        description="Say what a recipe will cost, by arithmetic, before anything is loaded.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="YAML file; see distill/recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--memory", type=float, metavar="GIB", help="say what of the attention matching fits into this")
    parser.add_argument("--tflops", type=float, help="10^12 operations a second of a device (default: measured here)")
    parser.add_argument("--measure", type=int, metavar="STEPS", help="train this many steps and compare the memory")
    parser.add_argument("--json", action="store_true", help="print JSON: bytes, operations, seconds")
    data = parser.add_argument_group("the longest sample (of the miniature it is known)")
    data.add_argument("--images", type=int, default=20, help="images in it (default: 20)")
    data.add_argument("--image-size", default="640x480", metavar="WxH", help="pixels (default: 640x480)")
    data.add_argument("--text-tokens", type=int, default=64, help="tokens beside the images (default: 64)")
    layout = parser.add_argument_group("the run")
    layout.add_argument("--processes", type=int, default=1, help="devices that split each step (default: 1)")
    layout.add_argument("--sharded", action="store_true", help="as if they shared the student, by FSDP2")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan; returns 0.

    Raises:
        ValueError: a wrong setting, a model whose sizes are not known.
    """
    recipe = load_config(Recipe, arguments.recipe, arguments.overrides)
    wheel_guard.install()
    # Slow to import, and `distill --help` needs none of it.
    from distill.planning.make import make_plan, planned_device
    from distill.planning.measure import measure_peak_bytes
    from distill.planning.memory import Execution
    from distill.planning.step import Assumption

    measured = None
    if arguments.measure is not None:
        measured = measure_peak_bytes(arguments.recipe, arguments.overrides, arguments.measure)
    plan = make_plan(
        recipe,
        assumption=Assumption(
            images=arguments.images, image_size=_size(arguments.image_size), text_tokens=arguments.text_tokens
        ),
        execution=Execution(
            device=planned_device(recipe),
            num_processes=arguments.processes,
            is_sharded=arguments.sharded,
        ),
        tflops=arguments.tflops,
        limit_bytes=None if arguments.memory is None else int(arguments.memory * 2**30),
        measured_bytes=measured,
    )
    print(json.dumps(plan.to_dict(), indent=2) if arguments.json else plan.to_text())
    return 0


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"--image-size: {text!r}, expected width and height in pixels, such as 640x480")
    return int(width), int(height)
