"""`distill data`: makes training data."""

import argparse
import random
from collections import Counter
from pathlib import Path

from distill.data.coco import TRAINING_SPLIT, CocoImages, read_coco
from distill.data.haystacks import HaystackMaker, Plan, plan_haystacks

_HELP = """examples:
  distill data haystacks --coco coco --out train.jsonl                          5000 questions over 2 to 20 images
  distill data haystacks --coco coco --out long.jsonl --sizes 2-20 50 100 150   other sizes, as many questions of each
  distill data haystacks --coco coco --out multi.jsonl --needles 1 2 3          single and multi needle, evenly

COCO is a folder with annotations/instances_train2017.json and train2017/; val2017 and test2017, which Visual Haystacks
evaluates with, are refused wherever they turn up. The same arguments write the same file, byte for byte.

A single needle is asked about as in Visual Haystacks: "For the image with the dog, is there a cat?" With two needles or
more: "For all images with the dog, do all (any) of them contain the cat?" Exactly one image, or as many as there are
needles, shows the anchor (dog). Half of the answers of every size are yes.

Train on it with the block that the last line prints:
  data: {jsonl: {path: train.jsonl, image_folder: coco}, ...}
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb and its one sub-verb, `haystacks`."""
    parser = subparsers.add_parser("data", help="make training data")
    haystacks = parser.add_subparsers(required=True, metavar="haystacks").add_parser(
        "haystacks",
        help="questions over many COCO images, in the form of Visual Haystacks",
        description="Make training haystacks of any size from COCO's training images.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    haystacks.add_argument("--coco", type=Path, required=True, metavar="FOLDER", help="COCO 2017")
    haystacks.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON Lines, must not exist")
    haystacks.add_argument(
        "--sizes", type=_sizes, nargs="+", default=[range(2, 21)], metavar="N", help="images: 5 or 2-20 (default: 2-20)"
    )
    haystacks.add_argument(
        "--needles", type=_positive, nargs="+", default=[1], metavar="N", help="images asked about (default: 1)"
    )
    haystacks.add_argument(
        "--count", type=_positive, default=5000, metavar="N", help="questions of all sizes together (default: 5000)"
    )
    haystacks.add_argument("--seed", type=int, default=0, metavar="N", help="other seeds, other haystacks (default: 0)")
    haystacks.add_argument(
        "--min-images",
        type=_positive,
        default=10,
        metavar="N",
        help="leave out pairs of objects with fewer images for either answer (default: 10)",
    )
    haystacks.add_argument(
        "--annotations", type=Path, metavar="FILE", help=f"default: instances_{TRAINING_SPLIT}.json in FOLDER"
    )
    haystacks.set_defaults(run=_haystacks)


def _haystacks(arguments: argparse.Namespace) -> int:
    """Writes the file and prints what is in it and what is not; returns 0."""
    sizes = sorted({size for each in arguments.sizes for size in each})
    needles = sorted(set(arguments.needles))
    out: Path = arguments.out
    if out.exists():
        raise ValueError(f"--out: {out} exists, expected a new file")
    plans = plan_haystacks(sizes=sizes, needles=needles, count=arguments.count, seed=arguments.seed)
    annotations = arguments.annotations or arguments.coco / "annotations" / f"instances_{TRAINING_SPLIT}.json"
    coco = read_coco(arguments.coco, annotations)
    maker = HaystackMaker(coco, largest_size=sizes[-1], most_needles=needles[-1], min_images=arguments.min_images)
    _write(out, maker, plans, arguments.seed)
    _print_left_out(coco, maker)
    _print_table(plans)
    print(f"wrote {out}; train on it with: data: {{jsonl: {{path: {out}, image_folder: {arguments.coco}}}, ...}}")
    return 0


def _write(out: Path, maker: HaystackMaker, plans: list[Plan], seed: int) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for index, plan in enumerate(plans):
            file.write(maker.make(plan, random.Random(f"haystack/{seed}/{index}")).line())
    partial.replace(out)


def _print_left_out(coco: CocoImages, maker: HaystackMaker) -> None:
    print(f"used: {len(coco.paths)} images, {maker.num_pairs} pairs of anchor and target")
    for reason, number in sorted((coco.left_out + maker.left_out).items()):
        print(f"left out: {number} {reason}")


def _print_table(plans: list[Plan]) -> None:
    counts = Counter(plans)
    print(f"{'images':>6} {'needles':>8} {'questions':>10} {'yes':>7} {'no':>7}")
    for size, needles in sorted({(plan.size, plan.num_needles) for plan in plans}):
        yes, no = counts[Plan(size, needles, "yes")], counts[Plan(size, needles, "no")]
        print(f"{size:>6} {needles:>8} {yes + no:>10} {yes:>7} {no:>7}")
    yes = sum(plan.answer == "yes" for plan in plans)
    print(f"{'all':>6} {'':>8} {len(plans):>10} {yes:>7} {len(plans) - yes:>7}")


def _sizes(text: str) -> range:
    """ "5" or "2-20"."""
    least, separator, most = text.partition("-")
    sizes = range(int(least), int(most if separator else least) + 1)
    if not sizes or sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number from 1 up, or a range such as 2-20")
    return sizes


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, expected at least 1")
    return number
