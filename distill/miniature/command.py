"""`distill miniature`: remakes the committed checkpoints."""

import argparse
from pathlib import Path

_HELP = """examples:
  distill miniature build                       both models, into distill/miniature/checkpoints
  distill miniature build --only base           one of them
  distill miniature build --out /tmp/models     somewhere else

Stopped with Ctrl-C it goes on where it was when it is started again.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb and its one sub-verb, `build`."""
    parser = subparsers.add_parser("miniature", help="the world of coloured shapes the project trains itself in")
    build = parser.add_subparsers(required=True, metavar="build").add_parser(
        "build",
        help="train the teacher and the base student from nothing (CPU, seeded, resumable)",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("--only", choices=("teacher", "base"), help="train just this one")
    build.add_argument("--out", type=Path, help="folder of the checkpoints (default: where they are committed)")
    build.add_argument("--work", type=Path, default=Path("runs/miniature/build"), help="state to resume from")
    build.set_defaults(run=_build)


def _build(arguments: argparse.Namespace) -> int:
    from distill.miniature import checkpoint_path
    from distill.miniature.build import PLANS, build_checkpoint

    for name in ("teacher", "base"):
        if arguments.only in (None, name):
            folder = arguments.out / name if arguments.out else checkpoint_path(name)
            build_checkpoint(name, PLANS[name], arguments.work, folder)
            print(f"{folder}: ready. Measure it: distill evaluate {folder}")
    return 0
