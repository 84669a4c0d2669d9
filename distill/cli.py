"""The `distill` command: one verb, one module."""

import argparse
import sys
from collections.abc import Sequence

from distill import fold, plan, record, train
from distill.attention_spectrum import command as attention_spectrum
from distill.comparison import command as comparison
from distill.data import command as data
from distill.evaluate import command as evaluate
from distill.inspection import command as inspection
from distill.miniature import command as miniature
from distill.reproducible import ask_for_the_same_bits
from distill.reproduction import command as reproduction

_EXAMPLES = """examples:
  distill plan distill/recipes/miniature.yaml                 say what a recipe will cost, before anything is loaded
  distill train distill/recipes/miniature.yaml                make the miniature LAid student
  distill train recipe.yaml train.steps=300 --resume          change a setting; go on if it was stopped before
  distill record recipe.yaml runs/signals                     run the teacher once, then train without it
  distill data haystacks --coco coco --out train.jsonl        training data from COCO's training images
  distill evaluate runs/miniature/student                     measure its effective window
  distill evaluate http://127.0.0.1:8000/v1                   the same through the server
  distill compare base.json student.json                      several models in one table, figure and page
  distill spectrum miniature:teacher miniature:base           how attention depends on distance
  distill fold runs/static/student runs/static/folded         static gains into the weights: a stock checkpoint
  distill inspect runs/miniature/student --figure gains.png   show which wavelengths it amplified
  distill reproduce                                           repeat the experiment: LAid, its rivals, its ablations
  distill miniature build                                     retrain the committed teacher and base student
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; the console script and `python -m distill`.

    Returns:
        The exit code: 0 for success, 1 for an error the user can mend, 130 after Ctrl-C.
    """
    ask_for_the_same_bits()
    parser = argparse.ArgumentParser(
        prog="distill",
        description="Make a small long-context VLM out of a large one (LAid, arXiv 2512.21576).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for module in (
        plan,
        train,
        record,
        data,
        evaluate,
        comparison,
        attention_spectrum,
        inspection,
        fold,
        miniature,
        reproduction,
    ):
        module.add_parser(verbs)
    chosen = _parse(parser, arguments)
    try:
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"distill: {error}", file=sys.stderr)
        return 1


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """As `parse_args`, but settings of a recipe, key=value, may follow an option, where argparse takes none."""
    chosen, rest = parser.parse_known_args(arguments)
    are_settings = all("=" in each and not each.startswith("-") for each in rest)
    if rest and not (are_settings and hasattr(chosen, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        chosen.overrides = [*chosen.overrides, *rest]
    return chosen
