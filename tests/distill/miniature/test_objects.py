import random

import numpy as np
import pytest

from distill.miniature.objects import COLOURS, IMAGE_SIZE, OBJECTS, draw_image


def test_there_are_24_objects():
    assert len(set(OBJECTS)) == 24


def test_an_equal_seed_draws_an_equal_image():
    first, again, other = (draw_image(OBJECTS[:2], random.Random(seed)) for seed in (7, 7, 8))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_keeps_its_colour_inside_one_quadrant(name):
    colour = np.array(COLOURS[name.split()[0]])
    for seed in range(20):
        pixels = np.asarray(draw_image((name,), random.Random(seed))).astype(int)
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        painted = np.argwhere((np.abs(pixels - colour) <= 20).all(-1))
        assert len(painted) >= 30
        assert len(np.unique(painted // (IMAGE_SIZE // 2), axis=0)) == 1


def test_shapes_of_one_size_differ():
    drawings = {
        draw_image((f"red {shape}",), random.Random(3)).tobytes() for shape in ("circle", "square", "triangle", "cross")
    }
    assert len(drawings) == 4
