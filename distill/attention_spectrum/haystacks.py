"""Held-out haystacks of the miniature world with the needle at every depth equally often."""

from dataclasses import replace

from distill.data.sample import Sample
from distill.evaluate.tasks import MiniatureTask
from distill.miniature.items import Item, Kind, make_item


def even_haystacks(num_images: int, num_rounds: int, *, kind: Kind, seed: int) -> list[Sample]:
    """Rounds of samples, one for each depth of the needle, from the first image to the last.

    They are the items of `distill evaluate` but for the place of the needle, which is swapped with another image: where
    it is drawn, the heads that find it would have a profile of the draw.
    """
    task = MiniatureTask(kind=kind, seed=seed)
    samples = []
    for index in range(num_rounds * num_images):
        drawn = make_item(task.item_seed(num_images, index), num_images, kind)
        item = _move_needle(drawn, index % num_images)
        name = f"haystack {num_images}/{index}"
        samples.append(Sample(messages=tuple(item.messages()), answer=item.answer, name=name))
    return samples


def needle_distances(num_images: int, num_rounds: int) -> list[int]:
    """How many images lie between each sample's needle and its question, in the order of `even_haystacks`."""
    return [num_images - 1 - index % num_images for index in range(num_rounds * num_images)]


def _move_needle(item: Item, place: int) -> Item:
    images = list(item.images)
    images[place], images[item.needle_index] = images[item.needle_index], images[place]
    return replace(item, images=tuple(images), needle_index=place)
