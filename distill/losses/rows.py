"""Which query rows a loss looks at, and how far each key lies from them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.kinds import DistanceKind


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Query rows of each sample, padded to the largest number of rows."""

    index_BR: Tensor
    """Token index of each row; any token where not valid."""
    valid_BR: Tensor
    """False where the sample has fewer rows."""

    def causal_chunks(self, max_values: int) -> Iterator[tuple["Rows", int]]:
        """The same rows in pieces, each with the number of keys that its last row sees.

        A piece has at most `max_values` rows times keys, and at least one row. Rows must be in the tokens' order.
        """
        last_R = self.index_BR.masked_fill(~self.valid_BR, 0).amax(dim=0).tolist()
        start = 0
        while start < len(last_R):
            end = start + 1
            while end < len(last_R) and (end + 1 - start) * (last_R[end] + 1) <= max_values:
                end += 1
            piece = slice(start, end)
            yield Rows(index_BR=self.index_BR[:, piece], valid_BR=self.valid_BR[:, piece]), max(last_R[piece]) + 1
            start = end

    def of_sample(self, sample: int) -> "Rows":
        """One sample's own, without padding: [1, R]."""
        return Rows(
            index_BR=self.index_BR[sample][self.valid_BR[sample]][None],
            valid_BR=self.valid_BR[sample][self.valid_BR[sample]][None],
        )

    def gather(self, x_BHTD: Tensor) -> Tensor:
        """Picks these rows of each head: [B, H, R, D]."""
        index_BHRD = self.index_BR[:, None, :, None].expand(-1, x_BHTD.shape[1], -1, x_BHTD.shape[3])
        return x_BHTD.gather(2, index_BHRD)


def rows_where(mask_BT: Tensor) -> Rows:
    """The rows at which the mask is true, in their order."""
    counts_B = mask_BT.sum(dim=1)
    num_rows = int(counts_B.max())
    # A stable sort of "is not wanted" brings the wanted tokens to the front without changing their order.
    index_BR = (~mask_BT).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_rows]
    valid_BR = torch.arange(num_rows, device=mask_BT.device) < counts_B[:, None]
    return Rows(index_BR=index_BR, valid_BR=valid_BR)


def drawn_from(mask_BT: Tensor, at_most: int, seeds: Sequence[str]) -> Tensor:
    """The mask with at most so many of each sample's true tokens, all equally likely, by the sample's own seed."""
    drawn_BT = torch.zeros_like(mask_BT)
    for mask_T, drawn_T, seed in zip(mask_BT, drawn_BT, seeds, strict=True):
        tokens = mask_T.nonzero()[:, 0].tolist()
        drawn_T[random.Random(seed).sample(tokens, min(at_most, len(tokens)))] = True
    return drawn_BT


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each token lies, in the three senses of distance."""

    position_ids_3BT: Tensor
    """M-RoPE positions: time, height, width."""
    images_before_BT: Tensor
    """Number of images that began at or before the token."""

    def of_sample(self, sample: int, length: int) -> "Places":
        """One sample's own, of so many tokens: [1, T]."""
        piece = slice(sample, sample + 1)
        return Places(
            position_ids_3BT=self.position_ids_3BT[:, piece, :length],
            images_before_BT=self.images_before_BT[piece, :length],
        )

    def distance(self, kind: DistanceKind, index_BR: Tensor, num_keys: int) -> Tensor:
        """Distance of each of the first keys from each row, whole numbers [B, R, keys]; of use only up to the row.

        `token`: difference of token indices; `position`: difference of M-RoPE positions, the largest of the axes;
        `image`: number of images that lie between (0 within one image, and from the text to the last image).
        """
        if kind == "token":
            keys_T = torch.arange(num_keys, device=index_BR.device)
            return (index_BR[:, :, None] - keys_T).abs()
        if kind == "image":
            rows_BR = self.images_before_BT.gather(1, index_BR)
            return (rows_BR[:, :, None] - self.images_before_BT[:, None, :num_keys]).abs()
        rows_3BR = self.position_ids_3BT.gather(2, index_BR.expand(3, -1, -1))
        return (rows_3BR[..., None] - self.position_ids_3BT[:, :, None, :num_keys]).abs().amax(dim=0)
