"""How much attention each head gives to images by how far away they are.

Dimension letters beside those of `distill.signals`: L layers, N images (by distance in a profile: 0 is the last image
of the prompt, which is nearest to the question), M items.

    a_m[l, h, d] = mean over rows r of item m of  Σ over tokens j of the image at distance d of  softmax_j(s·q_r·k_j)

The softmax is over all tokens up to the row, so a profile sums to the share of attention that images get at all; the
rest goes to text, of which the first token and the question itself get most. Only tokens of images are counted: text
beside them would put spikes of its own at both ends. M-RoPE gives all tokens of an image the same distance in
positions, the largest of the axes' differences, so that a profile over positions is the profile over images, with steps
as wide as an image is in positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.batch import Batch
from distill.data.sample import Sample
from distill.losses.kinds import RowKind
from distill.losses.rows import Rows
from distill.model import SignalModel
from distill.signals import AttentionShape, QueryKey

_CAPTURED_BYTES = 2**31
"""Queries and keys in memory at a time: of as many layers as fit, and the model runs again for the others."""

_CHUNK_PAIRS = 2**20
"""Rows times keys of which attention is in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """The profiles of one model's heads on haystacks of one size."""

    attention_MLHN: Tensor
    """Shares of attention, float32."""
    distance_positions_N: Tensor
    """The same distances in M-RoPE positions: from the rows, mean over rows, tokens of the image and items."""


def measure_profiles(
    model: SignalModel,
    collate: Callable[[Sequence[Sample]], Batch],
    samples: Sequence[Sample],
    rows: RowKind,
    advance: Callable[[], object],
) -> Profiles:
    """Runs the model on each sample, all of the same number of images, and tells `advance` after each."""
    attention, positions = [], []
    for sample in samples:
        batch = collate([sample]).to(model.model.device)
        with torch.no_grad():
            attention.append(_all_layers(model, batch, rows).cpu())
        positions.append(_distance_positions(batch, rows).cpu())
        advance()
    return Profiles(attention_MLHN=torch.stack(attention), distance_positions_N=torch.stack(positions).mean(dim=0))


def image_attention(
    layer: QueryKey, rows: Rows, image_BT: Tensor, num_images: int, *, max_pairs: int = _CHUNK_PAIRS
) -> Tensor:
    """Attention of each head to each image, mean over the rows [B, H, images], float32. No map of T x T is made.

    Args:
        rows: in the tokens' order; all of a sample's valid ones count alike.
        image_BT: the image that a token is of, in their order; `num_images` for none.
        max_pairs: rows times keys in a chunk.
    """
    groups = layer.q_BHTD.shape[1] // layer.k_BKTD.shape[1]
    total_BHN = layer.q_BHTD.new_zeros(*layer.q_BHTD.shape[:2], num_images + 1, dtype=torch.float32)
    for piece, num_keys in rows.causal_chunks(max_pairs):
        q_BHRD = piece.gather(layer.q_BHTD).float() * layer.scale
        k_BHTD = layer.k_BKTD[:, :, :num_keys].float().repeat_interleave(groups, dim=1)
        future_BRT = torch.arange(num_keys, device=q_BHRD.device) > piece.index_BR[:, :, None]
        logits_BHRT = (q_BHRD @ k_BHTD.transpose(-1, -2)).masked_fill(future_BRT[:, None], -torch.inf)
        attention_BHT = (logits_BHRT.softmax(dim=-1) * piece.valid_BR[:, None, :, None]).sum(dim=2)
        total_BHN.scatter_add_(2, image_BT[:, None, :num_keys].expand_as(attention_BHT), attention_BHT)
    return total_BHN[:, :, :num_images] / rows.valid_BR.sum(dim=1)[:, None, None]


def _all_layers(model: SignalModel, batch: Batch, kind: RowKind) -> Tensor:
    """[L, H, N] of the batch's only sample, by distance."""
    shape, rows = model.shape, batch.rows(kind)
    image_BT, num_images = _images(batch), len(batch.images)
    step = max(1, _CAPTURED_BYTES // _layer_bytes(shape, batch.num_tokens))
    found = []
    for start in range(0, shape.num_layers, step):
        layers = model.signals(batch, range(start, min(start + step, shape.num_layers))).layers
        found += [image_attention(layers[number], rows, image_BT, num_images)[0] for number in sorted(layers)]
    return torch.stack(found).flip(-1)


def _images(batch: Batch) -> Tensor:
    is_image_BT = batch.input_ids_BT == batch.image_token_id
    return (batch.images_before_BT - 1).where(is_image_BT, len(batch.images))


def _distance_positions(batch: Batch, kind: RowKind) -> Tensor:
    """[N] of the batch's only sample, by distance in images."""
    image_BT, num_images = _images(batch), len(batch.images)
    distance_BRT = batch.places.distance("position", batch.rows(kind).index_BR, image_BT.shape[1])
    mean_T = distance_BRT[0].double().mean(dim=0)
    sums_N = mean_T.new_zeros(num_images + 1).scatter_add(0, image_BT[0], mean_T)
    return (sums_N / image_BT[0].bincount(minlength=num_images + 1).clamp(min=1))[:num_images].flip(0)


def _layer_bytes(shape: AttentionShape, num_tokens: int) -> int:
    """Of a layer's float32 queries and keys."""
    return 4 * num_tokens * (shape.num_heads + shape.num_key_value_heads) * shape.head_size
