"""`distill spectrum`: how attention depends on distance, for teacher, base and student."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.miniature.items import KINDS
from rope_gain import wheel_guard

if TYPE_CHECKING:
    from distill.attention_spectrum.report import Measured

_DESCRIPTION = """\
Measures the attention of every head to images by how far away they are, on held-out haystacks of the miniature world,
and how much of it varies slowly with distance: the low band of its Fourier spectrum, which LAid is said to keep.
Writes spectrum.json, profiles.png, low_band.png and comparison.png, and prints a summary of each checkpoint."""

_EXAMPLES = """examples:
  distill spectrum miniature:teacher miniature:base runs/miniature/student
  distill spectrum miniature:base LAid=runs/laid/student SFT=runs/sft/student --images 20 50 100 150
  distill spectrum Qwen2.5-VL-7B-Instruct --images 20 --dtype bfloat16      a folder of any family that can be distilled

The rows are those of the question and the answer, and the keys the tokens of images; the rest of a row's attention is
on text. A profile is the mean over items of what a head gives to the last image, the one before it, and so on. In each
round every depth has the needle once, so that a profile does not follow from where needles happen to be.

  retrieval head      the head that gives the needle's image most, as layer/head; spectrum.json has all of them, for
                      loss.matching.heads in a recipe
  varies by           how much attention depends on distance; the shares of the low band say only how fast
  low band: profile   of the mean over items: attention that depends on distance, whatever the images show. Only of
                      those heads whose differences between rounds are no more than half of it; more rounds tell more
  single items        mean over items: attention that is smooth, not on single images
  flat                what a head has that looks at one image, wherever it is

Formulas: distill/attention_spectrum/fourier.py. Attention is computed in pieces; no map of all tokens is made.
"""

# So that there are frequencies on both sides of the band.
_LEAST_IMAGES = 4


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "spectrum",
        help="show how attention depends on distance",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoints", nargs="+", metavar="[NAME=]CHECKPOINT", help="folders, or miniature:teacher and miniature:base"
    )
    parser.add_argument(
        "--images", type=int, nargs="+", default=(20, 100), metavar="N", help="in a haystack (default: 20 100)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="items for each depth, at least 2 (default: 2)"
    )
    parser.add_argument("--rows", choices=("question", "answer"), default="question", help="(default: question)")
    parser.add_argument(
        "--low-band",
        type=float,
        default=0.25,
        metavar="X",
        help="periods longer than this share of the range are low (default: 0.25)",
    )
    parser.add_argument("--kind", choices=KINDS, default="open", help="of the question (default: open)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the items (default: 1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/spectrum"), metavar="FOLDER", help="(default: runs/spectrum)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, writes the folder and prints the summary; ValueError where it cannot."""
    checkpoints = _name_checkpoints(args.checkpoints)
    _check(args)
    wheel_guard.install()
    # Imported when needed: torch takes seconds, and every verb's help would wait for it.
    from distill.attention_spectrum import figure
    from distill.attention_spectrum.report import format_table, to_json

    found = _measure(args, checkpoints)
    print(format_table(found, args.low_band))
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "checkpoints": checkpoints,
        "task": f"miniature/{args.kind}",
        "seed": args.seed,
        "rounds": args.rounds,
        "rows": args.rows,
        "dtype": args.dtype,
    }
    numbers = json.dumps(to_json(found, args.low_band, settings), ensure_ascii=False, allow_nan=False)
    (out / "spectrum.json").write_text(numbers + "\n", encoding="utf-8")
    figure.draw_profiles(out / "profiles.png", found)
    figure.draw_low_band(out / "low_band.png", found, args.low_band)
    figure.draw_comparison(out / "comparison.png", found, args.low_band)
    print(f"wrote {out}: spectrum.json, profiles.png, low_band.png, comparison.png")
    return 0


def _name_checkpoints(arguments: list[str]) -> dict[str, str]:
    """Paths by name: what stands before =, else the folder's or the miniature model's name."""
    checkpoints: dict[str, str] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator or "/" in name:
            # A folder's name may hold the sign too.
            path = argument
            name = path.removeprefix("miniature:") if path.startswith("miniature:") else Path(path).resolve().name
        if not path.startswith("miniature:") and not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path}: no config.json there, expected a checkpoint folder or miniature:teacher")
        if name in checkpoints:
            raise ValueError(f"{name}: the name of two checkpoints; give each its own, as in {name}-2=FOLDER")
        checkpoints[name] = path
    return checkpoints


def _check(args: argparse.Namespace) -> None:
    if args.rounds < 2:
        raise ValueError(f"--rounds: {args.rounds}, expected at least 2, whose differences tell the noise")
    if not 0 < args.low_band < 1:
        raise ValueError(f"--low-band: {args.low_band:g}, expected a share between 0 and 1")
    for num_images in args.images:
        if num_images < _LEAST_IMAGES or num_images // 2 * args.low_band < 1:
            least = max(_LEAST_IMAGES, 2 * -(-1 // args.low_band))
            raise ValueError(
                f"--images: {num_images}, expected at least {least:.0f} for frequencies outside of --low-band"
            )


def _measure(args: argparse.Namespace, checkpoints: dict[str, str]) -> "list[Measured]":
    import torch
    from tqdm import tqdm

    from distill.attention_spectrum.fourier import make_spectrum
    from distill.attention_spectrum.haystacks import even_haystacks, needle_distances
    from distill.attention_spectrum.profile import measure_profiles
    from distill.attention_spectrum.report import Measured
    from distill.data.collate import Collator
    from distill.families import find_family
    from distill.loading import load_model, load_processor
    from distill.model import Teacher
    from distill.recipe import ModelConfig

    sizes, found = sorted(set(args.images)), []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    total = args.rounds * sum(size * size for size in sizes) * len(checkpoints)
    with tqdm(total=total, unit="image", desc="spectrum") as bar:
        for name, path in checkpoints.items():
            config = ModelConfig(path=path, dtype=args.dtype)
            loaded = load_model(config, device)
            collate = Collator(load_processor(config), find_family(loaded).rope_index(loaded))
            model = Teacher(loaded, feature_cache_bytes=0)
            for size in sizes:
                bar.set_postfix_str(f"{name}, {size} images a prompt")
                samples = even_haystacks(size, args.rounds, kind=args.kind, seed=args.seed)
                profiles = measure_profiles(model, collate, samples, args.rows, partial(bar.update, size))
                attention = profiles.attention_MLHN.double().numpy()
                on_needle = attention[range(len(samples)), :, :, needle_distances(size, args.rounds)]
                found.append(
                    Measured(
                        name=name,
                        num_images=size,
                        num_items=len(samples),
                        profile_LHN=attention.mean(axis=0),
                        needle_LH=on_needle.mean(axis=0),
                        distance_positions_N=profiles.distance_positions_N.numpy(),
                        spectrum=make_spectrum(attention, args.rounds),
                    )
                )
    return found
