"""`distill reproduce`: the experiment of LAid in the miniature world, from nothing to its table."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distill.comparison.command import write_comparison
from distill.reproduction.arms import ARMS
from distill.reproduction.run import Reproduction, Scale, measure_spectra, run_all
from distill.reproduction.steps import StepError

_DESCRIPTION = """\
Trains LAid, its rivals and LAid without each of its parts, all from the same base student with the same budget of
steps and the same data of 2 to 20 images, several seeds each; measures them all on items that nothing was tuned on;
and writes the paper's table: accuracy from 1 to 150 images, effective windows, window factors, gains at short and at
long context, all with 95 % intervals. Then the attention of each against distance (`distill spectrum`), first seed."""

_EXAMPLES = """examples:
  distill reproduce                              all of it, hours on two CPU cores, into runs/reproduce
  distill reproduce                              again: goes on where it was stopped
  distill reproduce --quick                      one seed, three arms, fewer steps and items: minutes
  distill reproduce --only sft laid              some rows
  distill reproduce --scarce                     the same with 27 different samples of each size, met again and again

What training and measuring print is in each model's log.txt. A model whose report is there is neither trained nor
measured again: delete its folder to have it anew.
"""

FULL = Scale(seeds=(1, 2, 3), sizes=(1, 5, 10, 20, 50, 100, 150), items=200, spectrum_sizes=(20, 100))
QUICK = Scale(seeds=(1,), settings=("train.steps=250",), sizes=(1, 5, 20, 50, 100), items=50, spectrum_sizes=(20,))
QUICK_ARMS = ("base", "sft", "laid")

SCARCE = replace(FULL, settings=("data.miniature.distinct_per_size=27",))
"""513 different samples of 2 to 20 images, where the paper has 5,000 and ten epochs of them."""
SCARCE_ARMS = (
    "base",
    "sft",
    "sft-stretch",
    "logits-stretch",
    "papers-layers",
    "retrieval-heads",
    "no-matching",
    "laid",
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "reproduce",
        help="repeat the experiment: LAid, its rivals and its ablations in one table",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="(default: runs/reproduce, with -quick or -scarce at its end)"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a short form, to see that it works")
    size.add_argument("--scarce", action="store_true", help="few different samples, as in the paper, and fewer rows")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="models at a time, one core each (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="ARM", help="names of rows; the base is always among them")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the experiment and writes its tables; returns 0, 1 if a step failed, 130 after Ctrl-C.

    Raises:
        ValueError: an arm that does not exist, or no jobs.
    """
    if arguments.jobs < 1:
        raise ValueError(f"--jobs: {arguments.jobs}, expected at least 1")
    names = [arm.name for arm in ARMS]
    suffix, scale, chosen = _experiment(arguments, names)
    wanted = arguments.only or chosen
    for name in wanted:
        if name not in names:
            raise ValueError(f"--only: {name!r}, expected one of {', '.join(names)}")
    arms = [arm for arm in ARMS if arm.name in {*wanted, "base"}]
    out = arguments.out or Path(f"runs/reproduce{suffix}")
    reproduction = Reproduction(folder=out, scale=scale)
    try:
        rows = run_all(reproduction, arms, jobs=arguments.jobs)
        print("measuring the spectra ...", flush=True)
        measure_spectra(reproduction, arms)
    except (StepError, KeyboardInterrupt) as error:
        print(f"{error}\ndistill: stopped; the same command goes on from here", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    write_comparison(rows, base="base", out=out / "comparison")
    return 0


def _experiment(arguments: argparse.Namespace, names: Sequence[str]) -> tuple[str, Scale, Sequence[str]]:
    if arguments.quick:
        return "-quick", QUICK, QUICK_ARMS
    return ("-scarce", SCARCE, SCARCE_ARMS) if arguments.scarce else ("", FULL, names)
