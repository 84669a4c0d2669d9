"""Positions of short samples spread over the distances of long ones."""

import random

import torch
from torch import Tensor

from distill.recipe import StretchConfig


def stretched(positions_3T: Tensor, token_types_T: Tensor, config: StretchConfig, seed: str) -> Tensor:
    """Positions [3, T] with gaps before the images and before the text after the last one.

    A model learns to look far by meeting far distances, not by meeting many tokens: skip-wise positions do that for
    text (PoSE, Zhu et al., arXiv 2309.10400). Here the gaps lie between images, so that within an image and within a
    text M-RoPE's positions stay what they are. How much is added in all is drawn uniformly up to what leaves the last
    position at `to_position`, and then where.

    Args:
        positions_3T: on every axis, growing with the tokens.
        token_types_T: 1 on image tokens, 0 on text.
        seed: draws the gaps; the same seed gives the same ones.
    """
    rng = random.Random(f"stretch/{seed}")
    begins_I = (token_types_T.diff(prepend=token_types_T.new_zeros(1)) == 1).nonzero()[:, 0]
    room = config.to_position - int(positions_3T.max())
    if rng.random() >= config.share or room <= 0 or len(begins_I) == 0:
        return positions_3T
    after_last = token_types_T.nonzero()[-1:, 0] + 1
    total = rng.randint(0, room)
    shifts = sorted(rng.randint(0, total) for _ in begins_I)
    gaps = torch.tensor([0, *shifts, total]).diff()
    # One more than there are tokens: the last image may be the end.
    gaps_T1 = positions_3T.new_zeros(positions_3T.shape[1] + 1).index_put_((torch.cat([begins_I, after_last]),), gaps)
    return positions_3T + gaps_T1.cumsum(0)[:-1]
