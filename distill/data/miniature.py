"""Training haystacks of the miniature world, drawn from a fixed collection of images."""

import random
from functools import lru_cache

from PIL import Image

from distill.data.sample import CountTokens, Sample
from distill.miniature.items import Kind, make_haystack, prompt_text
from distill.miniature.objects import draw_image
from distill.recipe import DataConfig, MiniatureData


class MiniatureSource:
    """Steps of equally long haystacks, or of any lengths, each step with sizes and questions of its own.

    The images come from `renderings` drawings of each pair of objects, so that features of a frozen vision tower are
    computed once per drawing. Evaluation items are drawn afresh and from other seeds: none is met in training.
    """

    def __init__(self, config: DataConfig, miniature: MiniatureData, *, seed: int, count_tokens: CountTokens) -> None:
        self._config = config
        self._miniature = miniature
        self._seed = seed
        self._count_tokens = count_tokens
        self._draw = lru_cache(maxsize=None)(self._drawing)

    def samples(self, step: int) -> list[Sample]:
        """The samples of this step; the same arguments always give the same samples."""
        rng = random.Random(f"miniature/{self._seed}/{step}")
        if self._config.mix_lengths:
            return self._mixed_samples(rng, step)
        num_images = self._size(rng)
        first = self._sample(rng, num_images, f"step {step}, sample 0")
        room = self._config.tokens_per_step // self._count_tokens(first)
        count = max(1, min(room, self._config.max_samples_per_step))
        return [first, *(self._sample(rng, num_images, f"step {step}, sample {i}") for i in range(1, count))]

    def _mixed_samples(self, rng: random.Random, step: int) -> list[Sample]:
        samples: list[Sample] = []
        room = self._config.tokens_per_step
        while len(samples) < self._config.max_samples_per_step:
            sample = self._sample(rng, self._size(rng), f"step {step}, sample {len(samples)}")
            room -= self._count_tokens(sample)
            if samples and room < 0:
                break
            samples.append(sample)
        return samples

    def _size(self, rng: random.Random) -> int:
        sizes = self._miniature.sizes
        chosen = rng.choices(sizes, [each.weight for each in sizes])[0]
        return rng.randint(chosen.least, chosen.most)

    def _sample(self, rng: random.Random, num_images: int, name: str) -> Sample:
        if self._miniature.distinct_per_size is not None:
            number = rng.randrange(self._miniature.distinct_per_size)
            rng = random.Random(f"miniature/{self._seed}/{num_images} images/{number}")
        kind: Kind = "open" if rng.random() < self._miniature.open_share else "yes_no"
        haystack = make_haystack(rng, num_images, kind)
        parts = [{"type": "image", "image": self._rendering(rng, names)} for names in haystack.contents]
        content = [*parts, {"type": "text", "text": prompt_text(haystack)}]
        return Sample(messages=({"role": "user", "content": content},), answer=haystack.answer, name=name)

    def _rendering(self, rng: random.Random, names: tuple[str, ...]) -> Image.Image:
        return self._draw(tuple(sorted(names)), rng.randrange(self._miniature.renderings))

    def _drawing(self, pair: tuple[str, ...], rendering: int) -> Image.Image:
        return draw_image(pair, random.Random(f"{self._seed}/{pair}/{rendering}"))
