"""What lmms-eval calls for the tasks that `distill evaluate --export-lmms-eval` writes.

Copied behind the source of `scoring` into utils.py of the exported folder, which so needs nothing but Pillow.
"""

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from distill.evaluate.scoring import haystack_words, score


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The images of an item, in their order."""
    folder = Path(__file__).parent
    return [ImageOps.exif_transpose(Image.open(folder / path)).convert("RGB") for path in doc["images"]]


def doc_to_text(doc: dict[str, Any]) -> str:
    """The text behind the images."""
    text: str = doc["question"]
    return text


def doc_to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """One user message: the images, then the text, as `distill evaluate` sends them."""
    images = [{"type": "image", "url": image} for image in doc_to_visual(doc)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": doc["question"]}]}]


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """The verdicts of `distill evaluate` on an answer."""
    answer = str(results[0])
    verdict = score(answer, doc["answer"], doc["legal_answers"])
    scores = {"accuracy": float(verdict.correct), "compliance": float(verdict.compliant)}
    if doc["has_official_score"]:
        scores["official"] = float(doc["answer"] in haystack_words(answer))
    return scores
