"""Sizes of images to try a rule on."""

import random


def sizes(count: int, *, step: int = 14) -> list[tuple[int, int]]:
    """(width, height): a third over all magnitudes, a third next to multiples of `step`, where rounding turns, and a
    third at or next to simple ratios, where grids tie."""
    chance = random.Random(0)
    third = count // 3
    spread = [(round(2 ** chance.uniform(0, 13)), round(2 ** chance.uniform(0, 13))) for _ in range(third)]
    edges = [tuple(max(1, step * chance.randrange(200) + chance.randrange(-1, 2)) for _ in "wh") for _ in range(third)]
    ties = []
    for _ in range(third):
        side, across, down = chance.randrange(1, 900), chance.randrange(1, 7), chance.randrange(1, 7)
        ties.append((side * across + chance.choice([0, 0, 0, 1]), side * down))
    return [*spread, *((width, height) for width, height in edges), *ties]
