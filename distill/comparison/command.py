"""`distill compare`: several models in one table and one figure."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

_DESCRIPTION = """\
Puts evaluated models into one table and one figure, in the form of the LAid paper: accuracy by number of images,
effective windows, and window factors and gains against a base, all with 95 % intervals.
Writes compare.json, table.md, figure.png and index.html, a page that stands alone, and prints the tables."""

_EXAMPLES = """examples:
  distill evaluate distill/miniature/checkpoints/base --no-write --out runs/evaluate/base
  distill evaluate runs/miniature/student --out runs/evaluate/student
  distill compare runs/evaluate/base runs/evaluate/student         the first one is the base
  distill compare teacher.json base.json laid.json --base base     or name it
  distill compare base.json SFT=sft-1.json,sft-2.json,sft-3.json LAid=laid-1.json,laid-2.json,laid-3.json
                                                                   three seeds of each method, one row each

All must be measured on one task, at the same numbers of images. A row's name is its model's, unless NAME= comes first.
A row of several seeds shows their mean, and its intervals cover seeds and items: seeds are drawn first, then items.
Where answers.jsonl lies beside report.json and the models answered the same items (the same --seed), items are drawn
together for all models; a ratio of two is then known better than from two intervals.

  gain, short context   mean of the ratios of accuracies to the base's at 1, 5, 10 and 20 images, less 1
  gain, long context    the same at 50, 100 and 150 images
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="put evaluated models into one table and one figure",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "reports",
        nargs="+",
        metavar="[NAME=]REPORT[,REPORT...]",
        help="a report.json, its folder or an evaluated checkpoint; with commas, the seeds of one method",
    )
    parser.add_argument(
        "--base", metavar="NAME", help="the row that windows and gains are against (default: the first)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/compare"), metavar="FOLDER", help="(default: runs/compare)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads, compares, writes the folder and prints the tables; ValueError where the reports do not fit together."""
    write_comparison(args.reports, base=args.base, out=args.out)
    return 0


def write_comparison(reports: Sequence[str], *, base: str | None, out: Path) -> None:
    """Writes the folder and prints the tables.

    Args:
        reports: as on the command line, [NAME=]REPORT[,REPORT...].
        base: the name of the row that the others are against; the first by default.

    Raises:
        ValueError: the reports do not fit together.
    """
    # Imported when needed: numpy and matplotlib take a second, and every verb's help would wait for them.
    from distill.comparison.bootstrap import Bootstrap
    from distill.comparison.compare import compare
    from distill.comparison.entry import read_entries
    from distill.comparison.table import to_json, to_markdown

    entries = read_entries(reports)
    comparison = compare(entries, base or entries[0].name, Bootstrap())
    text = to_markdown(comparison)
    print(text)

    from distill.comparison.figure import write_figure
    from distill.comparison.page import make_page

    out.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(to_json(comparison), indent=2, ensure_ascii=False, allow_nan=False)
    (out / "compare.json").write_text(numbers + "\n", encoding="utf-8")
    (out / "table.md").write_text(text, encoding="utf-8")
    write_figure(out / "figure.png", comparison)
    (out / "index.html").write_text(make_page(comparison), encoding="utf-8")
    print(f"wrote {out}: compare.json, table.md, figure.png, index.html")
