"""`distill evaluate`: accuracy against the number of images, and the effective window."""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from distill.checkpoint import LAID_FILE, laid_record, read_laid, write_laid
from distill.evaluate import report
from distill.evaluate.answers import AnswersFile
from distill.evaluate.measure import Outcome, Runner, measure
from distill.evaluate.table import format_official, format_table
from distill.evaluate.tasks import MiniatureTask, Task
from distill.miniature.items import KINDS
from rope_gain import wheel_guard

_DESCRIPTION = """\
Asks a model questions about haystacks of images and reports accuracy against the number of images, the
share of answers in a legal form, and the effective window: the largest number of images up to which accuracy
stays at or above a threshold, each with a 95 % interval. The items are the same for every model.

A checkpoint folder is run here, through transformers or vLLM, and the result is stored in its laid.json, where the
gateway reads it. A URL is any server with the OpenAI chat completions protocol.

Beside report.json, curve.png shows accuracy by number of images, and heatmap.png by number of images and depth of the
needle among them, from the first image (0 %) to the last.

Every answer is written as it comes. A run that was stopped goes on with --resume, which asks only what is missing."""

_TASK_FOLDERS = {"miniature": None, "visual-haystacks": "coco", "mm-niah": "images", "mmlongbench": "images"}
"""The tasks, and the option that names the folder of a task's images."""

_EXPORTED = ("miniature", "visual-haystacks")
"""Tasks whose images come before the question, and whose scoring lmms-eval can be given."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a model's effective window",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target", nargs="?", metavar="CHECKPOINT_OR_URL", help="a checkpoint folder, or http(s)://host/v1"
    )
    _add_questions(parser.add_argument_group("what is asked"))
    _add_results(parser.add_argument_group("what is reported"))
    _add_checkpoint(parser.add_argument_group("for a checkpoint"))
    _add_server(parser.add_argument_group("for a URL"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, writes the report folder and laid.json; ValueError where it cannot."""
    task = _make_task(args)
    sizes = sorted(set(args.sizes or task.default_sizes))
    _check(args)
    task.check(sizes, args.items)
    if args.export_lmms_eval:
        return _export(args, task, sizes)
    base = report.read_evaluation(args.base) if args.base else None
    if base:
        report.check_base(base, task.name)
    name, target = _name_target(args)
    out: Path = args.out or Path("runs/evaluate", f"{name}-{_label(task)}")
    with AnswersFile(out, _identity(args, task, target), resume=args.resume) as answers:
        known = list(answers.outcomes)
        outcomes, seconds = _measure(args, task, sizes, target, answers)
        answers.sort()
    evaluation = report.evaluate_outcomes(
        outcomes, args.thresholds, task=task.name, measured=_measured(args), seed=args.seed
    )
    factors = report.compare(evaluation, base) if base else []
    official = report.official_score(outcomes, task.official_scorer) if task.official_scorer else None
    print(format_table(evaluation, factors), end="\n\n")
    if official:
        print(format_official(official), end="\n\n")

    sources = {str(size): task.source(size) for size in sizes}
    report.write_report(
        out, target, evaluation, factors, seconds, sources=sources, official=official, resumed=len(known)
    )
    _draw(out, name, evaluation, base, outcomes)
    print(f"wrote {out}: report.json, answers.jsonl, curve.png, heatmap.png")
    checkpoint = _checkpoint_to_write(args)
    if checkpoint:
        # A checkpoint made elsewhere is a base of whatever is distilled into it.
        record = read_laid(checkpoint) or laid_record("base")
        write_laid(checkpoint, {**record, "effective_window": evaluation.to_dict()})
        print(f"wrote {checkpoint / LAID_FILE}: effective_window")
    return 0


def _export(args: argparse.Namespace, task: Task, sizes: Sequence[int]) -> int:
    from distill.evaluate.lmms_eval import export_lmms_eval

    tag = export_lmms_eval(args.export_lmms_eval, task, sizes, args.items, args.seed)
    print(
        f"wrote {args.export_lmms_eval}; where lmms-eval is installed:\n"
        f"OPENAI_API_KEY=none lmms-eval --model openai --include_path {args.export_lmms_eval} --tasks {tag} "
        "--model_args model=NAME,base_url=http://127.0.0.1:8000/v1,timeout=600,num_concurrent=4"
    )
    return 0


def _add_questions(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--task", choices=_TASK_FOLDERS, default="miniature", help="(default: miniature)")
    group.add_argument("--kind", choices=KINDS, default="open", help="of the miniature task (default: open)")
    group.add_argument(
        "--path", type=Path, metavar="FILE_OR_FOLDER", help="the task's own file, or a folder of its files"
    )
    group.add_argument(
        "--coco", type=Path, metavar="FOLDER", help="visual-haystacks: COCO's folder, with val2017 and test2017"
    )
    group.add_argument("--images", type=Path, metavar="FOLDER", help="mm-niah, mmlongbench: the folder of their images")
    group.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        metavar="N",
        help="images in a prompt (default: 1 5 10 20 50 100 150, from 5 on for several needles); a size of "
        "visual-haystacks that is not published is built from the next larger file, else from the largest; for mm-niah "
        "and mmlongbench tokens of context (default: all of the files)",
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
        help="for report.json, answers.jsonl, curve.png and heatmap.png (default: runs/evaluate/NAME-KIND)",
    )
    group.add_argument(
        "--resume", action="store_true", help="keep the answers that are in --out, and ask only what is missing"
    )
    group.add_argument(
        "--export-lmms-eval",
        type=Path,
        metavar="FOLDER",
        help="ask no model: write the items as tasks with which lmms-eval asks a served one",
    )
    stored = group.add_mutually_exclusive_group()
    stored.add_argument("--no-write", action="store_true", help="leave the checkpoint's laid.json as it is")
    stored.add_argument("--write-to", type=Path, metavar="CHECKPOINT", help="store in this one's laid.json")


def _add_checkpoint(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers", help="(default: transformers)"
    )
    group.add_argument(
        "--engine-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more argument of vLLM's LLM, such as max_model_len=32768; may be repeated",
    )
    group.add_argument(
        "--self-extend",
        nargs=2,
        type=int,
        metavar=("GROUP", "NEIGHBOURS"),
        help="attend by SelfExtend, a rival that needs no training (arXiv 2401.01325): of the keys beyond NEIGHBOURS "
        "positions, GROUP positions become one; with --no-write",
    )


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="NAME", help="(default: the only one served)")
    group.add_argument("--api-key", metavar="KEY", help="(default: OPENAI_API_KEY of the environment)")
    group.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time (default: 4)")


def _is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _make_task(args: argparse.Namespace) -> Task:
    folder = _TASK_FOLDERS[args.task]
    needed = {"path", folder} if folder else set()
    for option in ("path", "coco", "images"):
        if option in needed and not getattr(args, option):
            raise ValueError(f"--{option}: missing, --task {args.task} needs it")
        if option not in needed and getattr(args, option):
            raise ValueError(f"--{option}: is not for --task {args.task}, leave it out")
    if args.path and not args.path.exists():
        raise ValueError(f"--path: {args.path}: no such file or folder")
    if args.task == "visual-haystacks":
        from distill.evaluate.visual_haystacks import VisualHaystacksTask

        return VisualHaystacksTask(args.path, args.coco, args.seed)
    if args.task == "mm-niah":
        from distill.evaluate.mm_niah import MmNiahTask

        return MmNiahTask(args.path, args.images, args.seed)
    if args.task == "mmlongbench":
        from distill.evaluate.mmlongbench import MmLongBenchTask

        return MmLongBenchTask(args.path, args.images, args.seed)
    return MiniatureTask(kind=args.kind, seed=args.seed)


def _check(args: argparse.Namespace) -> None:
    """Refuses what cannot work before anything is loaded or asked."""
    if args.items < 1:
        raise ValueError(f"--items: {args.items}, expected at least 1")
    for value in args.thresholds:
        if not 0 < value <= 1:
            raise ValueError(f"--thresholds: {value}, expected a share above 0 and at most 1")
    if args.export_lmms_eval:
        if args.task not in _EXPORTED:
            raise ValueError(f"--export-lmms-eval: --task {args.task}, expected one of {', '.join(_EXPORTED)}")
        if args.target:
            raise ValueError(f"--export-lmms-eval: asks no model, leave {args.target} out")
        return
    if not args.target:
        raise ValueError("CHECKPOINT_OR_URL: missing, expected a checkpoint folder or a URL")
    if _is_url(args.target):
        if args.no_write:
            raise ValueError("--no-write: a URL has no checkpoint folder, nothing is stored without --write-to")
        if args.engine == "vllm":
            raise ValueError("--engine vllm: runs a checkpoint folder, a URL has its own engine; leave it out")
    elif not (Path(args.target) / "config.json").is_file():
        raise ValueError(f"{args.target}: no config.json there, expected a checkpoint folder or a URL")
    if args.self_extend and (_is_url(args.target) or args.engine == "vllm" or not args.no_write):
        raise ValueError(
            "--self-extend: expected a checkpoint folder, run by transformers, and --no-write: nothing serves it so"
        )
    if args.engine_arg and args.engine != "vllm":
        raise ValueError(f"--engine-arg: {args.engine_arg[0]}, only with --engine vllm")
    if args.write_to and not (args.write_to / "config.json").is_file():
        raise ValueError(f"--write-to: no config.json in {args.write_to}, expected a checkpoint folder")


def _measure(
    args: argparse.Namespace, task: Task, sizes: Sequence[int], target: dict[str, str], answers: AnswersFile
) -> tuple[list[Outcome], float]:
    """Asks what is missing, and tells the seconds that took; however it ends, says how to go on."""
    known = list(answers.outcomes)
    try:
        runner = _make_runner(args, task.most_images(sizes), target)
        start = time.monotonic()
        outcomes = measure(runner, task, sizes, args.items, progress=True, known=known, record=answers.add)
        return outcomes, time.monotonic() - start
    except (KeyboardInterrupt, ValueError, OSError):
        if answers.outcomes:
            command = shlex.join(["distill", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
            shown = command.replace(args.api_key, "KEY") if args.api_key else command
            print(f"\n{len(answers.outcomes)} answers are kept; to go on: {shown}", file=sys.stderr)
        raise


def _name_target(args: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """The model's name for files and legends, and the target for the report."""
    if not _is_url(args.target):
        checkpoint = Path(args.target).resolve()
        variant = {"self_extend": "{}:{}".format(*args.self_extend)} if args.self_extend else {}
        return checkpoint.name, {"checkpoint": str(checkpoint), **variant}
    from distill.evaluate.api import served_model

    model = args.model or served_model(args.target, _api_key(args))
    return re.sub(r"[^\w.-]+", "-", model), {"url": args.target, "model": model}


def _identity(args: argparse.Namespace, task: Task, target: dict[str, str]) -> dict[str, Any]:
    """What answers follow from; weights are told by the sizes and dates of their files, which are soon read."""
    weights = [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(Path(target.get("checkpoint", "")).glob("*.safetensors"))
        if "checkpoint" in target
    ]
    engine_args = {"engine_args": sorted(args.engine_arg)} if args.engine_arg else {}
    return {**target, **task.identity(), "measured": _measured(args), "weights": weights, **engine_args}


def _make_runner(args: argparse.Namespace, most_images: int, target: dict[str, str]) -> Runner:
    # Imported when needed: torch and the client each take seconds, and every verb's help would wait for them.
    if _is_url(args.target):
        from distill.evaluate.api import ApiRunner

        return ApiRunner(args.target, target["model"], _api_key(args), args.concurrency)
    checkpoint = Path(target["checkpoint"])
    if args.engine == "vllm":
        from distill.evaluate.engine import EngineRunner

        return EngineRunner(checkpoint, most_images, _engine_args(args.engine_arg))
    from distill.evaluate.local import LocalRunner

    if args.self_extend:
        wheel_guard.install()  # this module imports transformers before the runner does
        from distill.evaluate.self_extend import SelfExtend, apply_self_extend

        group, neighbours = args.self_extend
        config = SelfExtend(group=group, neighbours=neighbours)
        return LocalRunner(checkpoint, prepare=lambda model: apply_self_extend(model, config))
    return LocalRunner(checkpoint)


def _engine_args(settings: Sequence[str]) -> dict[str, Any]:
    engine_args = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--engine-arg: {setting!r}, expected NAME=VALUE")
        engine_args[name] = yaml.safe_load(value)
    return engine_args


def _api_key(args: argparse.Namespace) -> str:
    # The client wants some key even where the server wants none.
    return args.api_key or os.environ.get("OPENAI_API_KEY") or "none"


def _measured(args: argparse.Namespace) -> str:
    if _is_url(args.target):
        return "api"
    return "vllm" if args.engine == "vllm" else "local"


def _label(task: Task) -> str:
    """The task's name for a folder."""
    return task.name.removeprefix("miniature/").replace("/", "-")


def _draw(
    out: Path,
    name: str,
    evaluation: report.Evaluation,
    base: report.Evaluation | None,
    outcomes: Sequence[Outcome],
) -> None:
    from distill.evaluate.figure import draw_curves
    from distill.evaluate.heatmap import draw_heatmap

    draw_heatmap(out / "heatmap.png", f"{name}, {evaluation.task}", outcomes)
    draw_curves(out / "curve.png", [(name, evaluation), *([("base", base)] if base else [])])


def _checkpoint_to_write(args: argparse.Namespace) -> Path | None:
    """Where the result is stored: in the checkpoint it is about, if that is known and not forbidden."""
    if args.write_to:
        return Path(args.write_to)
    return None if args.no_write or _is_url(args.target) else Path(args.target)
