"""Visual Haystacks (arXiv 2407.13766) in its own form."""

import random
from pathlib import Path, PurePosixPath
from typing import Any

from distill.data.bad_samples import BadSampleError
from distill.data.json_file import JsonFile
from distill.data.messages import parse_with_images
from distill.data.records import Place, TakeImage
from distill.data.sample import Sample
from distill.recipe import VisualHaystacksData

OPENING = "You are given a set of images. Please answer the following question in Yes or No: "
"""What the official evaluation puts before every question."""

EVALUATION_SPLITS = ("val2017", "test2017")
"""COCO's images in the official files: what evaluates must not train."""


class VisualHaystacksRecords(JsonFile):
    """{"conversations": [question, "yes" or "no"], "pos_image": [...], "neg_image": [...]}, images in a COCO folder.

    Like the official evaluation it shows the images in random order, before the question; here an entry's order is
    always the same.
    """

    form = '{"conversations": [...], "pos_image": [...], "neg_image": [...]}'

    def __init__(self, data: VisualHaystacksData) -> None:
        super().__init__(Path(data.path))
        self._coco_folder = Path(data.coco_folder)
        self._allow_evaluation_images = data.allow_evaluation_images

    def read(self, place: Place, take: TakeImage) -> Sample:
        """The entry at a place; raises as `Records.read`."""
        record = self.record(place)
        question, answer = (turn["value"] for turn in record["conversations"])
        if answer not in ("yes", "no"):
            raise ValueError(f"answer: {answer!r}, expected 'yes' or 'no'")
        if not record["pos_image"]:
            raise BadSampleError("image count", "pos_image: empty, expected at least one image")
        paths = [self._path(path) for path in [*record["pos_image"], *record["neg_image"]]]
        random.Random(f"{place.offset}/{question}").shuffle(paths)
        content: list[dict[str, Any]] = [{"type": "image"} for _ in paths]
        content.append({"type": "text", "text": OPENING + question})
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return parse_with_images(messages, paths, take, self.name(place))

    def _path(self, path: str) -> str:
        # The official paths start above the COCO folder.
        parts = PurePosixPath(path.removeprefix("coco/"))
        evaluated = set(parts.parts).intersection(EVALUATION_SPLITS)
        if evaluated and not self._allow_evaluation_images:
            raise ValueError(
                f"{path}: an image of {evaluated.pop()}, which Visual Haystacks evaluates with, expected train2017; "
                "to train on it all the same, set data.visual_haystacks.allow_evaluation_images"
            )
        return str(self._coco_folder / parts)
