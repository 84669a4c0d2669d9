"""How much one step holds: samples, tokens, images, rows."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from distill.losses.kinds import RowKind
from distill.planning.shapes import VisionShape
from distill.recipe import MatchingConfig, Recipe

_MINIATURE_STEPS = 64


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """What a recipe does not say of samples that are not there yet: the longest one of the data."""

    images: int = 20
    """The paper's training questions have 2 to 20 images."""
    image_size: tuple[int, int] = (640, 480)
    """Width and height in pixels, COCO's most frequent size."""
    text_tokens: int = 64
    """Tokens beside the images: template, question and answer."""
    question_tokens: int = 48
    """Those of them after the last image."""
    answer_tokens: int = 2
    """Those of them that are predicted: yes or no, and the end of the turn."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """A step whose samples are equally long, as large as the budget of tokens lets it be."""

    num_samples: int
    sample_tokens: int
    """Tokens of a sample, padding to the longest included."""
    sample_images: int
    image_tokens: int
    image_patches: int
    distinct_images: int
    """Of the whole step: a frozen tower runs once for each."""
    question_rows: int
    """Per sample."""
    answer_rows: int
    """Per sample."""

    @property
    def num_tokens(self) -> int:
        """Of the whole step."""
        return self.num_samples * self.sample_tokens

    def part(self, num_parts: int) -> "StepShape":
        """The largest of the parts that the samples are cut into."""
        num_samples = math.ceil(self.num_samples / num_parts)
        distinct = math.ceil(self.distinct_images * num_samples / self.num_samples)
        return dataclasses.replace(self, num_samples=num_samples, distinct_images=distinct)

    def rows(self, kind: RowKind) -> int:
        """Query rows of this kind in each sample."""
        return {"all": self.sample_tokens, "question": self.question_rows, "answer": self.answer_rows}[kind]


def matched_rows(step: StepShape, config: MatchingConfig) -> int:
    """Query rows of each sample that the attention matching looks at."""
    rows = step.rows(config.rows)
    return rows if config.max_rows is None else min(rows, config.max_rows)


def plan_step(recipe: Recipe, vision: VisionShape, assumption: Assumption) -> StepShape:
    """The step that decides the memory: the longest samples, as many as `data.tokens_per_step` holds.

    The miniature's haystacks are drawn with its processor; of other data the assumption speaks.
    """
    if recipe.data.miniature is not None:
        return _miniature_step(recipe, vision)
    tokens, patches = image_tokens(assumption.image_size, vision)
    # Two tokens around each image mark where it begins and ends.
    sample_tokens = assumption.images * (tokens + 2) + assumption.text_tokens
    room = recipe.data.tokens_per_step // sample_tokens
    num_samples = max(1, min(room, recipe.data.max_samples_per_step))
    return StepShape(
        num_samples=num_samples,
        sample_tokens=sample_tokens,
        sample_images=assumption.images,
        image_tokens=tokens,
        image_patches=patches,
        distinct_images=num_samples * assumption.images,
        question_rows=assumption.question_tokens,
        answer_rows=assumption.answer_tokens,
    )


def image_tokens(size: tuple[int, int], vision: VisionShape) -> tuple[int, int]:
    """Tokens and patches of an image of this width and height.

    Qwen-VL rounds both sides to whole tokens (`smart_resize` of transformers' image processor; its limits on the
    number of pixels lie outside of COCO's sizes); InternVL cuts into tiles.
    """
    side, tiles = vision.patch_pixels * vision.merge, 1
    if vision.tile_pixels is not None:
        tiles = _num_tiles(size, vision.tile_pixels, vision.max_tiles)
        size = (vision.tile_pixels, vision.tile_pixels)
    width, height = (max(1, round(length / side)) for length in size)
    tokens = tiles * width * height
    return tokens, tokens * vision.merge**2


def _num_tiles(size: tuple[int, int], tile_pixels: int, max_tiles: int) -> int:
    """By the image processor's own rule; an image that is cut has a thumbnail too."""
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    columns, rows = get_optimal_tiled_canvas((size[1], size[0]), (tile_pixels, tile_pixels), 1, max_tiles)
    return 1 if columns * rows == 1 else columns * rows + 1


def _miniature_step(recipe: Recipe, vision: VisionShape) -> StepShape:
    """The largest of the run's first steps, tokenised for real; images are 32 pixels wide."""
    from distill.data.collate import Collator
    from distill.loading import load_processor, make_source
    from distill.miniature.objects import IMAGE_SIZE

    # The positions are the model's matter; their rule is not needed to count.
    collate = Collator(load_processor(recipe.student), _no_positions)
    source = make_source(recipe.data, seed=recipe.train.seed, count_tokens=collate.count_tokens)
    steps = [source.samples(step) for step in range(min(recipe.train.steps, _MINIATURE_STEPS))]
    encoded = [[collate.encode(sample) for sample in samples] for samples in steps]
    largest = max(encoded, key=lambda step: len(step) * max(len(each.input_ids_T) for each in step))
    longest = max(largest, key=lambda each: len(each.input_ids_T))
    tokens, patches = image_tokens((IMAGE_SIZE, IMAGE_SIZE), vision)
    num_tokens = len(longest.input_ids_T)
    num_samples = len(largest)
    if recipe.data.mix_lengths:
        # Packed: a long sample lengthens no other, and together they have no more tokens than the recipe allows.
        num_samples = max(1, min(num_samples, recipe.data.tokens_per_step // num_tokens))
    return StepShape(
        num_samples=num_samples,
        sample_tokens=num_tokens,
        sample_images=len(longest.images),
        image_tokens=tokens,
        image_patches=patches,
        distinct_images=len({image.key for each in largest for image in each.images}),
        question_rows=int(longest.token_types_T.flip(0).argmax()),
        answer_rows=num_tokens - longest.num_prompt_tokens,
    )


def _no_positions(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("counting tokens needs no positions")
