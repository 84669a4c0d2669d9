"""Haystacks as tensors: token ids, M-RoPE positions and pooled image features, without drawing anything.

Every image of the world has the same size, so all prompts of one kind and number of images share one layout.
The vision tower is frozen while the text tower learns, so a pool of drawn images is encoded once.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.miniature.items import Kind, make_haystack, prompt_text
from distill.miniature.objects import OBJECTS, draw_image

ANSWER_TOKENS = 2
"""An object, "yes" or "no", and the end of the turn."""


@dataclass(frozen=True, kw_only=True)
class FeaturePool:
    """Encoded drawings of every pair of objects. P pairs, V drawings of each, N merged tokens an image."""

    features_PVND: Tensor
    pairs: dict[frozenset[str], int]

    def pick(self, contents: tuple[tuple[str, str], ...], rng: random.Random) -> Tensor:
        """One drawing for each image, [images * N, D]."""
        drawings = self.features_PVND.shape[1]
        rows = [self.pairs[frozenset(pair)] for pair in contents]
        columns = [rng.randrange(drawings) for _ in contents]
        return self.features_PVND[rows, columns].flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B prompts of one layout, T tokens each; the last A tokens are the answer and its end."""

    input_ids_BT: Tensor
    position_ids_3BT: Tensor
    features_BID: Tensor
    image_rows_I: Tensor
    answer_length: int


def encode_pool(model: Any, processor: Any, seed: int, drawings: int) -> FeaturePool:
    """Draws every pair of objects `drawings` times and runs the model's vision tower over them."""
    rng = random.Random(seed)
    pairs = [(a, b) for i, a in enumerate(OBJECTS) for b in OBJECTS[i + 1 :]]
    features = []
    with torch.no_grad():
        for pair in pairs:
            images = [draw_image(pair, rng) for _ in range(drawings)]
            inputs = processor.image_processor(images, return_tensors="pt")
            pooled = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
            features.append(pooled.reshape(drawings, -1, pooled.shape[-1]))
    return FeaturePool(features_PVND=torch.stack(features), pairs={frozenset(pair): i for i, pair in enumerate(pairs)})


class PromptMaker:
    """Makes batches for one model from its processor and its pool; every batch from a seed of its own."""

    def __init__(self, model: Any, processor: Any, pool: FeaturePool) -> None:
        self._rope_index = model.model.get_rope_index
        self._image_token_id = model.config.image_token_id
        self._processor = processor
        self._pool = pool
        self._tokens_per_image = pool.features_PVND.shape[2]

    def make(self, seed: int, batch_size: int, num_images: int, kind: Kind) -> Batch:
        """B prompts with their answers.

        Returns:
            ids and positions [.., B, T], features [B, images * N, D] and the T-indices where they go.
        """
        rng = random.Random(f"{seed}/{num_images}/{kind}")
        haystacks = [make_haystack(rng, num_images, kind) for _ in range(batch_size)]
        image_part = "<|vision_start|>" + "<|image_pad|>" * self._tokens_per_image + "<|vision_end|>"
        prompts = [
            f"<|im_start|>user\n{image_part * num_images}{prompt_text(h)}<|im_end|>\n<|im_start|>assistant\n"
            f"{h.answer}<|im_end|>"
            for h in haystacks
        ]
        input_ids_BT = torch.tensor(self._processor.tokenizer(prompts)["input_ids"])
        features_BID = torch.stack([self._pool.pick(h.contents, rng) for h in haystacks])
        is_image_T = input_ids_BT[0] == self._image_token_id
        position_ids_31T = self._positions(input_ids_BT[:1], is_image_T[None].int(), num_images)
        return Batch(
            input_ids_BT=input_ids_BT,
            position_ids_3BT=position_ids_31T.expand(-1, batch_size, -1),
            features_BID=features_BID,
            image_rows_I=is_image_T.nonzero()[:, 0],
            answer_length=ANSWER_TOKENS,
        )

    def _positions(self, input_ids_1T: Tensor, is_image_1T: Tensor, num_images: int) -> Tensor:
        side = 2 * int(self._tokens_per_image**0.5)
        grids = torch.tensor([[1, side, side]] * num_images)
        position_ids_31T: Tensor = self._rope_index(input_ids_1T, is_image_1T, image_grid_thw=grids)[0]
        return position_ids_31T


def answer_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the answer's tokens, [B, A, vocabulary], and the right tokens, [B, A]."""
    embeds_BTD = model.get_input_embeddings()(batch.input_ids_BT)
    embeds_BTD = embeds_BTD.index_copy(1, batch.image_rows_I, batch.features_BID)
    hidden_BTD = model.model.language_model(
        inputs_embeds=embeds_BTD, position_ids=batch.position_ids_3BT, use_cache=False
    ).last_hidden_state
    length = batch.answer_length
    return model.lm_head(hidden_BTD[:, -length - 1 : -1]), batch.input_ids_BT[:, -length:]
