"""`laid-serve plan`: what a checkpoint needs and how much fits, before anything is started."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from server.media.images import ImageSize
from server.planning.plan import KV_DTYPES, Options, make_plan
from server.planning.report import to_dict, to_text
from server.planning.room import RESERVE_GIB, UTILIZATION
from server.planning.weights import DTYPE_BYTES

DESCRIPTION = """\
Says what serving a checkpoint takes, from its own files: bytes of weights and of KV cache per token and image, tokens
that fit into a GPU, and how many requests of 8k, 32k and 128k tokens, of the context length and of the effective
window fit at the same time. Nothing is loaded and no GPU is needed."""

EPILOG = """\
examples:
  laid-serve plan runs/student                            for the usual sizes of GPUs
  laid-serve plan runs/student --memory 80 --utilization 0.9 --kv-dtype fp8
  laid-serve plan runs/student --memory 80 --tensor-parallel 4 --json

--utilization, --kv-dtype and --tensor-parallel are the engine's own options; start it with the same, such as
--engine-arg=--gpu-memory-utilization=0.9 --engine-arg=--kv-cache-dtype=fp8 --engine-arg=--tensor-parallel-size=4.
A checkpoint in a folder called `plan` is served by `laid-serve ./plan`.

exit status: 0, or 2 for wrong arguments or a checkpoint that cannot be planned."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        plan = make_plan(options.checkpoint, _options(options))
    except (ValueError, OSError) as error:
        print(f"laid-serve plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(to_dict(plan), indent=2) if options.json else to_text(plan))
    return 0


def _options(given: argparse.Namespace) -> Options:
    """Those that were given; all others have their defaults."""
    names = ("memory_gib", "utilization", "reserve_gib", "dtype", "kv_dtype", "tensor_parallel", "images")
    return Options(**{name: value for name in names if (value := getattr(given, name)) is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "laid-serve plan", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of the checkpoint")
    parser.add_argument(
        "--memory",
        action="append",
        type=_positive,
        dest="memory_gib",
        metavar="GIB",
        help="of one GPU; may be repeated (default 24, 48, 80 and 141)",
    )
    parser.add_argument(
        "--utilization", type=_share, metavar="SHARE", help=f"that vLLM may use of it (default {UTILIZATION})"
    )
    parser.add_argument(
        "--reserve",
        type=_not_negative,
        dest="reserve_gib",
        metavar="GIB",
        help=f"of it that goes to neither weights nor cache, an assumption (default {RESERVE_GIB:g})",
    )
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPE_BYTES), help="of the weights (default auto: the checkpoint's, or bfloat16)"
    )
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, help="of the KV cache (default auto: that of the weights)")
    parser.add_argument("--tensor-parallel", type=_count, metavar="N", help="GPUs that share the model (default 1)")
    parser.add_argument(
        "--image",
        action="append",
        type=_size,
        dest="images",
        metavar="WxH",
        help="pixels of a typical image; may be repeated (default 640x480 and 1024x1024)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; sizes in bytes and tokens")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0 and at most 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def _size(text: str) -> ImageSize:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: expected width and height in pixels, such as 1024x768")
    return ImageSize(width=int(found[1]), height=int(found[2]))
