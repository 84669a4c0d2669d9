"""LLaVA-OneVision ("anyres"): the whole image small, then its best grid of tiles without their padding.

A token ends each row of the grid's features. vLLM treats every image so; transformers only an image that is alone in
its prompt. The gateway counts what the engine does.
"""

import math
from dataclasses import dataclass

from server.families.image_rule import ImageRule, scaled
from server.families.processor_files import ProcessorFiles, require
from server.media.images import ImageSize

SELECTED = {"full": 0, "default": 1}
"""By `vision_feature_select_strategy`: features of the whole image that are left out."""
# vLLM knows "anyres_max_9" only (`LlavaOnevisionProcessingInfo._get_num_unpadded_features`).
MAX_TILES = 9


@dataclass(frozen=True, kw_only=True)
class LlavaOnevisionRule:
    """transformers' `select_best_resolution` and `LlavaOnevisionProcessor._get_unpadded_features`."""

    tile: int
    """Side of a tile, in pixels."""
    features: int
    """Along a tile's side."""
    skipped: int
    grids: tuple[ImageSize, ...]
    """In pixels, each a multiple of tiles."""
    placeholder: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """One kind for all."""
        return (self.placeholder,)

    def count(self, size: ImageSize) -> int:
        """See `ImageRule`; every shape is accepted."""
        grid = self.best_grid(size)
        rows, columns = grid.height // self.tile * self.features, grid.width // self.tile * self.features
        if size.width / size.height > columns / rows:
            kept = int(round(size.height * (columns / size.width), 7))
            rows -= (rows - kept) // 2 * 2
        else:
            kept = int(round(size.width * (rows / size.height), 7))
            columns -= (columns - kept) // 2 * 2
        ratio = math.sqrt(rows * columns / (MAX_TILES * self.features**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return self.features**2 - self.skipped + rows * (columns + 1)

    def shrink(self, size: ImageSize, scale: float) -> ImageSize:
        """Down to where the longer side is one tile."""
        grid = self.best_grid(size)
        seen = min(1.0, grid.width / size.width, grid.height / size.height)
        smallest = min(1.0, self.tile / max(size.width, size.height))
        return scaled(size, max(seen * scale, smallest))

    def best_grid(self, size: ImageSize) -> ImageSize:
        """The grid that shows most of the image, and of several the one with the least padding."""

        def merit(grid: ImageSize) -> tuple[int, int]:
            scale = min(grid.width / size.width, grid.height / size.height)
            shown = min(int(size.width * scale) * int(size.height * scale), size.pixels)
            return shown, shown - grid.pixels

        return max(self.grids, key=merit)


def read_llava_onevision(files: ProcessorFiles) -> ImageRule:
    """Grids and tiles from config.json, as in vLLM.

    Raises:
        CheckpointError: a key is missing, or the vision tower is not SigLIP.
    """
    source = files.path / "config.json"
    tower = files.vision("model_type")
    if tower != "siglip_vision_model":
        raise files.error("config.json", f"vision_config.model_type {tower!r}; expected 'siglip_vision_model'")
    strategy = require(files.config, "vision_feature_select_strategy", source)
    if strategy not in SELECTED:
        raise files.error(
            "config.json", f"vision_feature_select_strategy {strategy!r}; expected {' or '.join(SELECTED)}"
        )
    tile = int(files.vision("image_size"))
    return LlavaOnevisionRule(
        tile=tile,
        features=tile // int(files.vision("patch_size")),
        skipped=SELECTED[strategy],
        grids=tuple(
            ImageSize(width=int(width), height=int(height))
            for height, width in require(files.config, "image_grid_pinpoints", source)
        ),
        placeholder=files.token("image_token") or files.processor.get("image_token") or "<image>",
    )
