"""The `laid-engine` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server.checkpoint import read_checkpoint
from server.engines.command import engine_command, engine_environment
from server.settings import Settings

DESCRIPTION = """\
Becomes vLLM's server for a checkpoint, LAid or stock, with the options that the gateway relies on: for engines that
run apart from the gateway, in containers or on other machines. It asks for no key and checks no image: let only
gateways reach it. `laid-serve CHECKPOINT` alone starts one by itself."""

EPILOG = """\
examples:
  laid-engine runs/student                                     http://127.0.0.1:8001
  laid-engine runs/student --host 0.0.0.0 --max-model-len 32768 --tensor-parallel-size 2
                                                               what it does not know itself goes to vLLM
  laid-serve runs/student --upstream http://127.0.0.1:8001     the gateway before it

exit status: vLLM's own, 2 for wrong arguments or checkpoint."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Replaces this process by vLLM's; returns only if it cannot."""
    options, extra_arguments = parse(arguments)
    try:
        checkpoint = read_checkpoint(options.checkpoint)
    except (ValueError, OSError) as error:
        print(f"laid-engine: {error}", file=sys.stderr)
        return 2
    command = engine_command(
        checkpoint,
        model=options.model or options.checkpoint.resolve().name,
        max_images=options.max_images,
        host=options.host,
        port=options.port,
        extra_arguments=extra_arguments,
    )
    os.execve(command[0], command, engine_environment() | dict(os.environ))  # noqa: S606 - no shell is what is wanted


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the rest, which are vLLM's."""
    return _parser().parse_known_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "laid-engine",
        usage="laid-engine CHECKPOINT [options] [options of vLLM's server]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # vLLM's options may begin like ours.
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of the checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8001, help="port to listen on (default 8001)")
    parser.add_argument("--model", metavar="NAME", help="the model's name (default: the folder's name)")
    parser.add_argument(
        "--max-images",
        type=int,
        default=Settings.model_fields["max_images"].default,
        metavar="N",
        help="images of one request, as the gateway's LAID_MAX_IMAGES (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
