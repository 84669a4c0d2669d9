"""`distill evaluate`: accuracy against the number of images, and the effective window."""

import argparse
import os
import re
import time
from pathlib import Path

from distill.checkpoint import LAID_FILE, laid_record, read_laid, write_laid
from distill.evaluate import report
from distill.evaluate.measure import Runner, measure
from distill.evaluate.table import format_table
from distill.evaluate.tasks import MiniatureTask
from distill.miniature.items import KINDS

_DESCRIPTION = """\
Asks a model questions about haystacks of images and reports accuracy against the number of images, the
share of answers in a legal form, and the effective window: the largest number of images up to which accuracy
stays at or above a threshold, each with a 95 % interval. The items are the same for every model.

A checkpoint folder is run here and the result is stored in its laid.json, where the gateway reads it.
A URL is any server with the OpenAI chat completions protocol."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a model's effective window",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="CHECKPOINT_OR_URL", help="a checkpoint folder, or http(s)://host/v1")
    _add_questions(parser.add_argument_group("what is asked"))
    _add_results(parser.add_argument_group("what is reported"))
    _add_server(parser.add_argument_group("for a URL"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, writes the report folder and laid.json; ValueError where it cannot."""
    task = MiniatureTask(kind=args.kind, seed=args.seed)
    _check(args, task)
    base = report.read_evaluation(args.base) if args.base else None
    runner, name, target = _make_runner(args)
    start = time.monotonic()
    outcomes = measure(runner, task, sorted(set(args.sizes)), args.items, progress=True)
    seconds = time.monotonic() - start
    measured = "api" if _is_url(args.target) else "local"
    evaluation = report.evaluate_outcomes(outcomes, args.thresholds, task=task.name, measured=measured, seed=args.seed)
    factors = report.compare(evaluation, base) if base else []
    print(format_table(evaluation, factors), end="\n\n")

    out: Path = args.out or Path("runs/evaluate", f"{name}-{args.kind}")
    out.mkdir(parents=True, exist_ok=True)
    report.write_answers(out, outcomes)
    report.write_report(out, target, evaluation, factors, seconds)
    _draw(out, name, evaluation, base)
    print(f"wrote {out}: report.json, answers.jsonl, curve.png")
    checkpoint = _checkpoint_to_write(args)
    if checkpoint:
        # A checkpoint made elsewhere is a base of whatever is distilled into it.
        record = read_laid(checkpoint) or laid_record("base")
        write_laid(checkpoint, {**record, "effective_window": evaluation.to_dict()})
        print(f"wrote {checkpoint / LAID_FILE}: effective_window")
    return 0


def _add_questions(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--kind", choices=KINDS, default="open", help="(default: open)")
    group.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=(1, 5, 10, 20, 50, 100, 150),
        metavar="N",
        help="images in a prompt (default: 1 5 10 20 50 100 150)",
    )
    group.add_argument("--items", type=int, default=100, metavar="N", help="at each size (default: 100)")
    group.add_argument("--seed", type=int, default=1, metavar="N", help="of items and bootstrap (default: 1)")


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=(0.5, 0.6, 0.7),
        metavar="X",
        help="accuracies that a window must hold (default: 0.5 0.6 0.7); 0.6 is always among them, and, "
        "if size 1 is measured, so is 85 %% of the model's own accuracy there",
    )
    group.add_argument(
        "--base",
        type=Path,
        metavar="REPORT",
        help="another model's report.json or evaluated checkpoint: how many times its windows are these?",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="for report.json, answers.jsonl and curve.png (default: runs/evaluate/NAME-KIND)",
    )
    stored = group.add_mutually_exclusive_group()
    stored.add_argument("--no-write", action="store_true", help="leave the checkpoint's laid.json as it is")
    stored.add_argument("--write-to", type=Path, metavar="CHECKPOINT", help="store in this one's laid.json")


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="NAME", help="(default: the only one served)")
    group.add_argument("--api-key", metavar="KEY", help="(default: OPENAI_API_KEY of the environment)")
    group.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time (default: 4)")


def _is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _check(args: argparse.Namespace, task: MiniatureTask) -> None:
    """Refuses what cannot work before anything is loaded or asked."""
    for size in args.sizes:
        task.item_seed(size, args.items - 1)
    for value in args.thresholds:
        if not 0 < value <= 1:
            raise ValueError(f"--thresholds: {value}, expected a share above 0 and at most 1")
    if _is_url(args.target):
        if args.no_write:
            raise ValueError("--no-write: a URL has no checkpoint folder, nothing is stored without --write-to")
    elif not (Path(args.target) / "config.json").is_file():
        raise ValueError(f"{args.target}: no config.json there, expected a checkpoint folder or a URL")
    if args.write_to and not (args.write_to / "config.json").is_file():
        raise ValueError(f"--write-to: no config.json in {args.write_to}, expected a checkpoint folder")


def _make_runner(args: argparse.Namespace) -> tuple[Runner, str, dict[str, str]]:
    """The runner, the model's name for files and legends, and the target for the report."""
    # Imported when needed: torch and the client each take seconds, and every verb's help would wait for them.
    if _is_url(args.target):
        from distill.evaluate.api import ApiRunner, served_model

        # The client wants some key even where the server wants none.
        api_key = args.api_key or os.environ.get("OPENAI_API_KEY") or "none"
        model = args.model or served_model(args.target, api_key)
        runner = ApiRunner(args.target, model, api_key, args.concurrency)
        return runner, re.sub(r"[^\w.-]+", "-", model), {"url": args.target, "model": model}
    from distill.evaluate.local import LocalRunner

    checkpoint = Path(args.target).resolve()
    return LocalRunner(checkpoint), checkpoint.name, {"checkpoint": str(checkpoint)}


def _draw(out: Path, name: str, evaluation: report.Evaluation, base: report.Evaluation | None) -> None:
    from distill.evaluate.figure import draw_curves

    draw_curves(out / "curve.png", [(name, evaluation), *([("base", base)] if base else [])])


def _checkpoint_to_write(args: argparse.Namespace) -> Path | None:
    """Where the result is stored: in the checkpoint it is about, if that is known and not forbidden."""
    if args.write_to:
        return Path(args.write_to)
    return None if args.no_write or _is_url(args.target) else Path(args.target)
