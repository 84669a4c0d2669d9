"""InternVL3 in its Hugging Face form: an image is cut into tiles of one size, and a thumbnail of it is added.

Nothing but the number of tiles matters for the tokens, and that is decided by the image's shape far more than by
its size: the grid of tiles is the one whose shape is nearest, and of several of that shape the size decides.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from server.families.image_rule import ImageRule, scaled
from server.families.processor_files import TOKENIZER, ProcessorFiles, require
from server.media.images import ImageSize

DEFAULT_SEQUENCE_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class InternVLRule:
    """transformers' `got_ocr2.image_processing_got_ocr2.get_optimal_tiled_canvas`, always cropping (as InternVL does).

    Around an image's tokens vLLM puts a start and an end, which belong to the image in its count too.
    """

    tile: ImageSize
    min_tiles: int
    max_tiles: int
    tokens_per_tile: int
    placeholder: str
    start: str
    end: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """Start, one for each feature, end."""
        return (self.start, self.placeholder, self.end)

    def count(self, size: ImageSize) -> int:
        """See `ImageRule`; every shape is accepted."""
        num_tiles = math.prod(self.grid(size))
        return self.tokens_per_tile * (num_tiles + 1 if num_tiles > 1 else 1) + 2

    def shrink(self, size: ImageSize, scale: float) -> ImageSize:
        """Same shape: what the size does not decide, no scale changes. Down to the pixels of one tile."""
        seen = min(1.0, math.sqrt(math.prod(self.grid(size)) * self.tile.pixels / size.pixels))
        smallest = min(1.0, math.sqrt(self.tile.pixels / size.pixels))
        return scaled(size, max(seen * scale, smallest))

    def grid(self, size: ImageSize) -> tuple[int, int]:
        """Tiles across and down."""
        shape = size.width / size.height
        nearest, best = math.inf, (1, 1)
        for columns, rows in self._grids:
            difference = abs(shape - columns / rows)
            # Of the same shape the one of more tiles, while these are less than twice the image.
            if difference < nearest or (
                difference == nearest and size.pixels > 0.5 * self.tile.pixels * columns * rows
            ):
                nearest, best = difference, (columns, rows)
        return best

    @cached_property
    def _grids(self) -> list[tuple[int, int]]:
        sides = range(1, self.max_tiles + 1)
        grids = [(i, j) for i in sides for j in sides if self.min_tiles <= i * j <= self.max_tiles]
        return sorted(grids, key=math.prod)


def read_internvl(files: ProcessorFiles) -> ImageRule:
    """Tiles from the image processor, the tokens of one from the processor, names from the tokenizer.

    Raises:
        CheckpointError: a key is missing.
    """
    source = files.path / files.image_source
    size = files.image("size")

    def token(name: str) -> str:
        token = files.token(name)
        if token is None:
            raise files.error(TOKENIZER, f"key {name!r} is missing")
        return token

    return InternVLRule(
        tile=ImageSize(width=int(require(size, "width", source)), height=int(require(size, "height", source))),
        min_tiles=int(files.image("min_patches")),
        max_tiles=int(files.image("max_patches")),
        tokens_per_tile=int(files.processor.get("image_seq_length", DEFAULT_SEQUENCE_LENGTH)),
        placeholder=token("context_image_token"),
        start=token("start_image_token"),
        end=token("end_image_token"),
    )
