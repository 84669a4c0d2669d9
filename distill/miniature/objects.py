"""The objects of the miniature world, and how an image of two of them is drawn."""

import random

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 190),
    "cyan": (60, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "cross")
OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

IMAGE_SIZE = 32
CELL = 16


def draw_image(names: tuple[str, ...], rng: random.Random) -> Image.Image:
    """Draws each named object in a quadrant of its own, with jittered place, size, colour and background.

    Args:
        names: one to four of `OBJECTS`.
        rng: the only source of chance: an equal state draws an equal image.

    Returns:
        An RGB image of 32x32 pixels: 2x2 merged tokens of a model with patch 8 and merge 2.
    """
    background = rng.randrange(0, 60)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (background, background, background))
    pen = ImageDraw.Draw(image)
    for name, quadrant in zip(names, rng.sample(range(4), len(names)), strict=True):
        colour, shape = name.split()
        size = rng.randrange(10, 14)
        left = CELL * (quadrant % 2) + rng.randrange(1, CELL - size)
        top = CELL * (quadrant // 2) + rng.randrange(1, CELL - size)
        fill = tuple(min(255, max(0, channel + rng.randrange(-20, 21))) for channel in COLOURS[colour])
        _draw_shape(pen, shape, left, top, size, fill)
    return image


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, left: int, top: int, size: int, fill: tuple[int, ...]) -> None:
    right, bottom = left + size - 1, top + size - 1
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=fill)
    elif shape == "triangle":
        pen.polygon(((left, bottom), (right, bottom), ((left + right) / 2, top)), fill=fill)
    else:
        third = size // 3
        pen.rectangle((left + third, top, right - third, bottom), fill=fill)
        pen.rectangle((left, top + third, right, bottom - third), fill=fill)
