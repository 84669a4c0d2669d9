"""How many tokens an image becomes, from its size alone."""

import math

from server.checkpoint import ImageRule

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, rule: ImageRule) -> tuple[int, int]:
    """The size to which Qwen's image processor brings an image, in pixels (height, width).

    Multiples of patch times merge, between min and max pixels, aspect ratio kept as well as that allows.
    Source: transformers' `qwen2_vl.image_processing_qwen2_vl.smart_resize`.

    Raises:
        ValueError: the sides differ by a factor of more than 200.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"{width}x{height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other, "
            "which the model does not accept"
        )
    factor = rule.patch_size * rule.merge_size
    resized_height = round(height / factor) * factor
    resized_width = round(width / factor) * factor
    if resized_height * resized_width > rule.max_pixels:
        beta = math.sqrt((height * width) / rule.max_pixels)
        resized_height = max(factor, math.floor(height / beta / factor) * factor)
        resized_width = max(factor, math.floor(width / beta / factor) * factor)
    elif resized_height * resized_width < rule.min_pixels:
        beta = math.sqrt(rule.min_pixels / (height * width))
        resized_height = math.ceil(height * beta / factor) * factor
        resized_width = math.ceil(width * beta / factor) * factor
    return resized_height, resized_width


def count_image_tokens(height: int, width: int, rule: ImageRule) -> int:
    """Placeholder tokens that an image of this size (pixels) takes in the prompt.

    Raises:
        ValueError: see `smart_resize`.
    """
    resized_height, resized_width = smart_resize(height, width, rule)
    return resized_height * resized_width // (rule.patch_size * rule.merge_size) ** 2
