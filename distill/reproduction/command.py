"""`distill reproduce`: the experiment of LAid in the miniature world, from nothing to its table."""

import argparse
import subprocess
import sys
from pathlib import Path

from distill.comparison.command import write_comparison
from distill.reproduction.arms import ARMS
from distill.reproduction.run import Reproduction, Scale, measure_spectra, run_all

_DESCRIPTION = """\
Trains LAid, its rivals and LAid without each of its parts, all from the same base student with the same budget of
steps and the same data of 2 to 20 images, several seeds each; measures them all on items that nothing was tuned on;
and writes the paper's table: accuracy from 1 to 150 images, effective windows, window factors, gains at short and at
long context, all with 95 % intervals. Then the attention of each against distance (`distill spectrum`), first seed."""

_EXAMPLES = """examples:
  distill reproduce                              all of it, hours on two CPU cores, into runs/reproduce
  distill reproduce                              again: goes on where it was stopped
  distill reproduce --quick --out runs/quick     one seed, three arms, fewer steps and items: minutes
  distill reproduce --only sft laid              some rows

A model whose report is there is neither trained nor measured again: delete its folder to have it anew.
"""

FULL = Scale(seeds=(1, 2, 3), sizes=(1, 5, 10, 20, 50, 100, 150), items=200, spectrum_sizes=(20, 100))
QUICK = Scale(seeds=(1,), settings=("train.steps=250",), sizes=(1, 5, 20, 50, 100), items=50, spectrum_sizes=(20,))
QUICK_ARMS = ("base", "sft", "laid")


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
        "--out", type=Path, default=Path("runs/reproduce"), metavar="FOLDER", help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it works")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="names of rows; the base is always among them")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the experiment and writes its tables; returns 0, or what the step that failed returned.

    Raises:
        ValueError: an arm that does not exist.
    """
    names = [arm.name for arm in ARMS]
    wanted = arguments.only or (QUICK_ARMS if arguments.quick else names)
    for name in wanted:
        if name not in names:
            raise ValueError(f"--only: {name!r}, expected one of {', '.join(names)}")
    arms = [arm for arm in ARMS if arm.name in {*wanted, "base"}]
    reproduction = Reproduction(folder=arguments.out, scale=QUICK if arguments.quick else FULL)
    try:
        rows = run_all(reproduction, arms)
        measure_spectra(reproduction, arms)
    except subprocess.CalledProcessError as error:
        print("distill: stopped; the same command goes on from here", file=sys.stderr)
        return int(error.returncode)
    write_comparison(rows, base="base", out=arguments.out / "comparison")
    return 0
