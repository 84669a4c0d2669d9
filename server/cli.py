"""The `laid-serve` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from server.engines.engine import EngineError
from server.planning.command import main as plan
from server.serve import EngineOptions, serve
from server.settings import Settings, check_environment
from server.telemetry.logs import configure_logs

DESCRIPTION = """\
Serves a checkpoint, LAid or stock, behind an OpenAI-compatible API: starts vLLM on loopback, waits until it
answers, and puts the gateway in front of it, which counts prompts, checks images, relays streams and measures.
Stays in the foreground until Ctrl-C or SIGTERM ends both."""

EPILOG = """\
examples:
  laid-serve runs/student                                 engine and gateway, http://127.0.0.1:8000/v1
  laid-serve runs/student --port 9000 --model my-model    another port, another name for clients
  laid-serve runs/student --engine-arg=--max-model-len=1024 --engine-arg=--seed=1
                                                          options of vLLM's own server
  laid-serve runs/student --upstream http://10.0.0.7:8000 the gateway alone, before an engine that runs there
  laid-serve runs/student --upstream http://10.0.0.7:8000 --upstream http://10.0.0.8:8000
                                                          before two: a conversation stays with one while it is well
  laid-serve plan runs/student --memory 80                what fits, before anything is started; see its own --help

limits come from the environment, e.g. LAID_MAX_IMAGES=50, LAID_MAX_BODY_BYTES, LAID_MAX_IMAGE_PIXELS,
LAID_MAX_CHOICES; every name is in server/settings.py. Logs are JSON on standard error, without prompts or images.

exit status: 0 ended by Ctrl-C or SIGTERM, 1 the engine failed, 2 wrong arguments or checkpoint."""

PLAN = "plan"
"""The one verb, known by its place: what stands first is else a checkpoint, and a folder of this name is `./plan`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == PLAN:
        return plan(arguments[1:])
    options = _parser().parse_args(arguments)
    configure_logs()
    try:
        settings = _settings(options)
        engine = None
        if "upstream" not in settings.model_fields_set:
            engine = EngineOptions(
                port=options.engine_port,
                extra_arguments=options.engine_arg,
                start_timeout_seconds=options.start_timeout,
            )
        return uvloop.run(serve(settings, engine))
    except EngineError as error:
        print(f"laid-serve: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"laid-serve: {error}", file=sys.stderr)
        return 2


def _settings(options: argparse.Namespace) -> Settings:
    """The command line's values over the environment's."""
    check_environment(os.environ)
    names = ("checkpoint", "host", "port", "model", "upstream")
    return Settings(**{name: value for name in names if (value := getattr(options, name)) is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "laid-serve", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of the checkpoint")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8000)")
    parser.add_argument("--model", metavar="NAME", help="the model's name for clients (default: the folder's name)")
    parser.add_argument(
        "--upstream",
        action="append",
        metavar="URL",
        help="an engine that already runs; none is started then; may be repeated, for engines that serve the same",
    )
    parser.add_argument("--engine-port", type=int, metavar="PORT", help="the engine's port (default: a free one)")
    parser.add_argument(
        "--engine-arg", action="append", default=[], metavar="ARG", help="one more argument for vLLM; may be repeated"
    )
    parser.add_argument(
        "--start-timeout", type=float, default=600.0, metavar="SECONDS", help="how long vLLM may take (default 600)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
