"""`distill fold`: static gains into the weights, for a checkpoint that any engine runs."""

import argparse
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distill.checkpoint import (
    LAID_FILE,
    laid_record,
    read_laid,
    serve_command,
    weights_sha256,
    whole_folder,
    write_laid,
)
from rope_gain import wheel_guard
from rope_gain.layout import read_config

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import PreTrainedModel

    from distill.gains import CheckpointGains

_EXAMPLES = """examples:
  distill fold runs/static/student runs/static/folded
  distill fold runs/miniature/student runs/miniature/folded --partial

The gains go into the query and key projections or, in families with norms on query and key (Qwen3, Qwen3-VL), into
those norms, which hold only gains that all heads share. Merge adapters before: one for the projections that was trained
with the gains in place does not fit OUT.

The logits before and after, on a prompt of several images (of text for a text model), may differ by rounding only: by
1e-4 of the largest logit in float32; and a 16-bit checkpoint, whose weights are rounded a second time, by no more than
CHECKPOINT's own logits change when it is run in 16 bits. If they differ by more, OUT is not written.

Gains that depend on the position ('position: log') fold into no weight and are refused. --partial folds their static
factor exp(a) and keeps the rest: layers whose gain does not depend on the position become stock ones, and OUT is a
checkpoint with gains unless all layers do.
"""

# A prompt in which every M-RoPE axis moves: neither the images nor their sides are alike.
_IMAGE_SIZES = ((128, 96), (96, 128), (64, 64), (128, 64), (112, 112), (64, 128))
_QUESTION = "You are given a set of images. Please describe what differs between them."

# For a text model.
_TEXT = " ".join(f"Object {number} lies {7 * number % 31} steps from the door." for number in range(16))

# The largest difference that passes, as a share of the largest logit: folding reorders float32 products, no more.
_FLOAT32_SHARE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two models' logits on one prompt are apart."""

    largest: float
    """Of any logit at any token."""
    tolerance: float
    """The largest that counts as rounding."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The model without its gains beside the one with them, on one prompt, computed in float32."""

    images: int
    """0 for a text model."""
    prompt_tokens: int
    folding: Difference
    """Of the folded model in float32."""
    stored: Difference
    """Of the files, read back: with the rounding to the checkpoint's dtype."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "fold",
        help="make a stock checkpoint of a student with static gains",
        description="Fold static gains into the weights before the rotation: a stock checkpoint for any engine.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint with static gains")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, which must not exist")
    parser.add_argument("--partial", action="store_true", help="fold the part that folds, keep the rest as gains")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Folds, proves and writes; returns 0.

    Raises:
        ValueError: there are no gains, they cannot be folded, OUT exists, or the logits differ by more than rounding.
    """
    checkpoint, out = arguments.checkpoint, arguments.out
    _check_gains(checkpoint, partial=arguments.partial)
    with whole_folder(out) as folder:
        proof = _fold_into(folder, checkpoint, partial=arguments.partial)
        _copy_other_files(checkpoint, folder)
        record = read_laid(checkpoint) or laid_record("student")
        source = {"path": str(checkpoint), "sha256": weights_sha256(checkpoint)}
        write_laid(folder, {**record, "folded": {"source": source, **asdict(proof)}})
    prompt = f"{proof.images} images, {proof.prompt_tokens} tokens" if proof.images else f"{proof.prompt_tokens} tokens"
    print(f"largest difference of the logits on {prompt}:")
    print(f"  folded in float32  {proof.folding.largest:.2g}  (at most {proof.folding.tolerance:.2g})")
    print(f"  as stored          {proof.stored.largest:.2g}  (at most {proof.stored.tolerance:.2g})")
    print(_how_to_serve(out))
    return 0


def _check_gains(checkpoint: Path, *, partial: bool) -> None:
    """Refuses what the configuration and the gains already tell, before gigabytes are read."""
    from distill.gains import read_gains

    gains = read_gains(checkpoint)
    refusal = _refusal(gains, partial=partial)
    if refusal is None:
        return
    hint = "" if partial or _refusal(gains, partial=True) else "; --partial folds the static factor and keeps the rest"
    raise ValueError(f"{checkpoint}/config.json: {refusal}{hint}")


def _refusal(gains: "CheckpointGains", *, partial: bool) -> str | None:
    from rope_gain.folding import check_foldable

    try:
        check_foldable(gains.layers, has_norm=gains.has_norm, partial=partial)
    except ValueError as error:
        return str(error)
    return None


def _fold_into(folder: Path, checkpoint: Path, *, partial: bool) -> Proof:
    """Writes the folded model and reads it back.

    Raises:
        ValueError: the logits differ by more than rounding.
    """
    wheel_guard.install()
    import torch

    from rope_gain import load_pretrained

    inputs, num_images = _make_inputs(checkpoint)
    before_TV, folding, tolerance = _save_folded(folder, checkpoint, inputs, partial=partial)
    stored_TV = _logits(load_pretrained(folder, dtype=torch.float32), inputs)
    return Proof(
        images=num_images,
        prompt_tokens=len(before_TV),
        folding=folding,
        stored=_compare(before_TV, stored_TV, tolerance, "as stored"),
    )


def _save_folded(
    folder: Path, checkpoint: Path, inputs: dict[str, "torch.Tensor"], *, partial: bool
) -> tuple["torch.Tensor", Difference, float]:
    """Writes the folded model.

    Returns:
        The logits [T, V] from before folding, those after it compared with them, and how far the stored ones may be.
    """
    from rope_gain import fold, load_pretrained, save_pretrained

    model = load_pretrained(checkpoint, dtype="auto")
    dtype = model.dtype
    own_TV = _logits(model, inputs)
    before_TV = _logits(model.float(), inputs)
    tolerance = _FLOAT32_SHARE * float(before_TV.abs().max())
    fold(model, partial=partial)
    folding = _compare(before_TV, _logits(model, inputs), tolerance, "in float32")
    # Scaled in float32 above, the weights of a 16-bit checkpoint are rounded only here.
    save_pretrained(model.to(dtype), folder)
    return before_TV, folding, max(tolerance, _largest_difference(before_TV, own_TV))


def _compare(before_TV: "torch.Tensor", after_TV: "torch.Tensor", tolerance: float, how: str) -> Difference:
    """ValueError if any logit differs by more than the tolerance."""
    largest = _largest_difference(before_TV, after_TV)
    # Written so that a NaN, which is what an overflow leaves, is refused too.
    if not largest <= tolerance:
        raise ValueError(
            f"the logits before and after folding differ by {largest:.2g} {how}, expected at most {tolerance:.2g}; "
            f"no checkpoint was written"
        )
    return Difference(largest=largest, tolerance=tolerance)


def _largest_difference(ours_TV: "torch.Tensor", theirs_TV: "torch.Tensor") -> float:
    return float((ours_TV - theirs_TV).abs().max())


def _make_inputs(checkpoint: Path) -> tuple[dict[str, "torch.Tensor"], int]:
    """A prompt as the checkpoint's processor or tokenizer makes it, and the number of its images."""
    from transformers import AutoProcessor, AutoTokenizer

    inputs: dict[str, torch.Tensor]
    if "vision_config" not in read_config(checkpoint):
        inputs = AutoTokenizer.from_pretrained(checkpoint)(_TEXT, return_tensors="pt")
        return inputs, 0
    images = _make_images()
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": _QUESTION}]
    inputs = AutoProcessor.from_pretrained(checkpoint).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return inputs, len(images)


def _make_images() -> "list[Image]":
    """Images of noise."""
    import PIL.Image

    rng = random.Random(0)
    return [
        PIL.Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)) for width, height in _IMAGE_SIZES
    ]


def _logits(model: "PreTrainedModel", inputs: dict[str, "torch.Tensor"]) -> "torch.Tensor":
    """Logits [T, V] of the prompt's every token."""
    import torch

    with torch.inference_mode():
        logits_TV: torch.Tensor = model.eval()(**inputs).logits[0]
    return logits_TV


def _how_to_serve(folder: Path) -> str:
    command = serve_command(folder)
    if "rope_gain" not in read_config(folder):
        return f"the folded checkpoint is in {folder}; serve it with: {command}"
    return f"the checkpoint in {folder} keeps the gains that do not fold; serve it, with this package, by: {command}"


def _copy_other_files(source: Path, target: Path) -> None:
    """Copies processor, tokenizer and chat template as they are; weights and configuration are `target`'s own."""
    for file in source.iterdir():
        is_replaced = ".safetensors" in file.name or file.name == LAID_FILE or (target / file.name).exists()
        if file.is_file() and not is_replaced:
            shutil.copy2(file, target)
