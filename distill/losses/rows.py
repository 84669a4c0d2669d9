"""Which query rows a loss looks at, and how far each key lies from them."""

from collections.abc import Iterator
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

    def chunks(self, size: int) -> Iterator["Rows"]:
        """The same rows, at most `size` of each sample at a time."""
        for index_BR, valid_BR in zip(
            torch.split(self.index_BR, size, dim=1), torch.split(self.valid_BR, size, dim=1), strict=True
        ):
            yield Rows(index_BR=index_BR, valid_BR=valid_BR)

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


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each token lies, in the three senses of distance."""

    position_ids_3BT: Tensor
    """M-RoPE positions: time, height, width."""
    images_before_BT: Tensor
    """Number of images that began at or before the token."""

    def distance(self, kind: DistanceKind, index_BR: Tensor) -> Tensor:
        """Distance of every key from each row, whole numbers [B, R, T]; of use only where the key is not after the row.

        `token`: difference of token indices; `position`: difference of M-RoPE positions, the largest of the axes;
        `image`: number of images that lie between (0 within one image, and from the text to the last image).
        """
        if kind == "token":
            keys_T = torch.arange(self.images_before_BT.shape[1], device=index_BR.device)
            return (index_BR[:, :, None] - keys_T).abs()
        if kind == "image":
            rows_BR = self.images_before_BT.gather(1, index_BR)
            return (rows_BR[:, :, None] - self.images_before_BT[:, None, :]).abs()
        rows_3BR = self.position_ids_3BT.gather(2, index_BR.expand(3, -1, -1))
        return (rows_3BR[..., None] - self.position_ids_3BT[:, :, None, :]).abs().amax(dim=0)
