from typing import Any

import pytest

from distill.data.miniature import MiniatureSource
from distill.data.sample import Sample
from distill.recipe import DataConfig, MiniatureData, SizeRange


def make_source(
    *,
    open_share: float = 0.5,
    seed: int = 0,
    tokens_per_step: int = 100,
    distinct_per_size: int | None = None,
    **settings: Any,
) -> MiniatureSource:
    sizes = (SizeRange(least=1, most=2, weight=1.0), SizeRange(least=9, most=10, weight=3.0))
    miniature = MiniatureData(sizes=sizes, open_share=open_share, renderings=2, distinct_per_size=distinct_per_size)
    config = DataConfig(tokens_per_step=tokens_per_step, miniature=miniature, **settings)
    return MiniatureSource(config, miniature, seed=seed, count_tokens=lambda sample: 6 * len(sample.images))


def content(samples: list[Sample]) -> list[tuple[str, str, list[bytes]]]:
    return [
        (sample.messages[0]["content"][-1]["text"], sample.answer, [image.tobytes() for image in sample.images])
        for sample in samples
    ]


def test_a_step_depends_on_its_number_and_the_seed_only() -> None:
    source = make_source()
    later, earlier = content(source.samples(5)), content(source.samples(4))
    assert later != earlier
    assert content(make_source().samples(5)) == later
    assert content(make_source(seed=1).samples(5)) != later


def test_samples_of_a_step_are_equally_long_and_fill_the_budget() -> None:
    for step in range(20):
        samples = make_source(tokens_per_step=130).samples(step)
        (num_images,) = {len(sample.images) for sample in samples}
        assert len(samples) == 130 // (6 * num_images)
    assert len(make_source(tokens_per_step=130, max_samples_per_step=2).samples(0)) == 2
    assert len(make_source(tokens_per_step=1).samples(0)) == 1


def test_mixed_lengths_fill_the_budget_and_not_more() -> None:
    source = make_source(tokens_per_step=130, mix_lengths=True)
    steps = [[6 * len(sample.images) for sample in source.samples(step)] for step in range(20)]
    assert all(130 - 6 * 10 < sum(lengths) <= 130 for lengths in steps)
    assert sum(len(set(lengths)) > 1 for lengths in steps) > 15
    assert len(make_source(tokens_per_step=130, max_samples_per_step=2, mix_lengths=True).samples(0)) == 2
    assert len(make_source(tokens_per_step=1, mix_lengths=True).samples(0)) == 1


def test_sizes_are_drawn_by_weight() -> None:
    source = make_source(tokens_per_step=1)
    sizes = [len(source.samples(step)[0].images) for step in range(200)]
    assert set(sizes) == {1, 2, 9, 10}
    assert 120 < sum(size > 2 for size in sizes) < 180


def test_images_come_from_the_collection() -> None:
    source = make_source(tokens_per_step=6000, open_share=1.0)
    images = [image for step in range(6) for each in content(source.samples(step)) for image in each[2]]
    assert len(images) > 2000
    # 276 pairs of 24 objects, two drawings each.
    assert len(set(images)) <= 552


def test_the_share_of_open_questions() -> None:
    for open_share, expected in ((0.0, {"yes", "no"}), (1.0, set())):
        samples = make_source(tokens_per_step=300, open_share=open_share).samples(0)
        assert {sample.answer for sample in samples} & {"yes", "no"} == expected


@pytest.mark.parametrize("mix_lengths", [False, True])
def test_distinct_samples_come_back(mix_lengths: bool) -> None:
    source = make_source(distinct_per_size=3, mix_lengths=mix_lengths)
    seen: dict[int, set[Any]] = {}
    for step in range(60):
        for question, answer, images in content(source.samples(step)):
            seen.setdefault(len(images), set()).add((question, answer, *images))
    assert {size: len(samples) for size, samples in seen.items()} == {1: 3, 2: 3, 9: 3, 10: 3}
