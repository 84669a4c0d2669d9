"""`distill record`: the teacher's signals on disk, so that training needs no teacher."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Literal

from distill.config import load_config
from distill.interrupt import StopRequest
from distill.recipe import Recipe
from rope_gain import wheel_guard

DEFAULT_TOP_K = 64
DEFAULT_DTYPE: Literal["float32", "bfloat16"] = "bfloat16"

_EXAMPLES = """examples:
  distill record recipe.yaml runs/signals                       record; the same command goes on after Ctrl-C or a crash
  distill record recipe.yaml runs/signals --top-k all --dtype float32      exact: trains as with the live teacher
  distill record recipe.yaml runs/signals --check               compare every checksum, record damaged shards again
  distill train recipe.yaml teacher.recording=runs/signals      train from it; the teacher need not be here

Recorded is what the recipe's losses look at, and nothing else: of the chosen layers the rotated keys, and the rotated
queries at the chosen rows; on the answer the likeliest tokens of the teacher's softmax at the recipe's temperature,
with the probability that is left for all others together. `rows: question` or `answer` keeps queries small; keys are
needed for all tokens. While it runs, `top` says how much probability the kept tokens have: raise --top-k where that is
little, since what the others share is not taught. With answers of a few words --top-k all adds little to the keys of
thousands of image tokens. Each sample on disk is recorded once, whatever the number of epochs.

The folder gets one safetensors file a step, shards.jsonl (their checksums and samples) and manifest.json (teacher,
processor, data, layers, versions): a training that does not fit them is refused.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "record",
        help="record the teacher's signals, to train without it",
        description="Run a recipe's teacher once over its data and write its signals to disk.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="YAML file; see distill/recipes/")
    parser.add_argument("folder", type=Path, metavar="OUT", help="a new folder, or a recording to go on with")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--top-k",
        type=_top_k,
        default=DEFAULT_TOP_K,
        metavar="K",
        help=f"tokens kept of each answer row; all (or 0) keeps every logit (default: {DEFAULT_TOP_K})",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default=DEFAULT_DTYPE,
        help=f"of queries and keys (default: {DEFAULT_DTYPE})",
    )
    parser.add_argument("--check", action="store_true", help="compare the checksums of what is there, and mend it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Records until all is recorded; returns 0, or 130 after Ctrl-C.

    Raises:
        ValueError: a wrong setting, models that do not fit each other or the data, a folder that holds something
            else, too little space.
    """
    recipe = load_config(Recipe, arguments.recipe, arguments.overrides)
    wheel_guard.install()
    # Slow to import, and `distill --help` needs none of it.
    from distill.recording.estimate import check_space, readable
    from distill.recording.recorder import Recorder
    from distill.recording.writer import RecordingWriter

    folder: Path = arguments.folder
    with StopRequest() as stop:
        recorder = Recorder(recipe, top_k=arguments.top_k or None, dtype=arguments.dtype)
        estimate = recorder.estimate()
        with RecordingWriter(folder, recorder.manifest, is_thorough=arguments.check) as writer:
            free_bytes = check_space(folder, estimate.total_bytes - writer.num_bytes)
            print(f"record: {estimate}; {readable(free_bytes)} free", file=sys.stderr)
            is_finished = recorder.run(writer, estimate, stop)
            num_steps, num_bytes = len(writer.steps), writer.num_bytes
    if not is_finished:
        print(f"stopped after {num_steps} steps, {readable(num_bytes)}; go on with:", file=sys.stderr)
        print(f"  distill record {_command(arguments)}", file=sys.stderr)
        return 130
    settings = shlex.join([str(arguments.recipe), *arguments.overrides, f"teacher.recording={folder}"])
    print(f"the recording is in {folder} ({num_steps} steps, {readable(num_bytes)}); distill train {settings}")
    return 0


def _top_k(text: str) -> int:
    """0 stands for all.

    Raises:
        ArgumentTypeError: neither a whole number nor `all`.
    """
    if text == "all":
        return 0
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number or all")
    return int(text)


def _command(arguments: argparse.Namespace) -> str:
    top_k = str(arguments.top_k or "all")
    words = [str(arguments.recipe), str(arguments.folder), *arguments.overrides]
    return shlex.join([*words, "--top-k", top_k, "--dtype", arguments.dtype])
