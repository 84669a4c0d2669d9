"""SelfExtend (Jin et al., arXiv 2401.01325) for models with M-RoPE: a rival that needs no training.

Near keys keep their distance; the distance to far ones is divided by a group size, so that it stays within what the
model has met. The paper of LAid names SelfExtend as a baseline; how it meets M-RoPE is ours: every axis is grouped.

Letters: B batch, H query heads, T tokens, D head size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from distill.checks import check_at_least
from rope_gain.gain import rotate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION_NAME = "laid_self_extend"


@dataclass(frozen=True, kw_only=True)
class SelfExtend:
    """How far is near, and how many far positions become one."""

    group: int
    neighbours: int
    """In positions."""

    def __post_init__(self) -> None:
        check_at_least("group", self.group, 1)
        check_at_least("neighbours", self.neighbours, 0)

    @property
    def shift(self) -> int:
        """Added to a query's grouped position, so that the far distances go on where the near ones end."""
        return self.neighbours - self.neighbours // self.group


def apply_self_extend(model: "PreTrainedModel", config: SelfExtend) -> None:
    """Makes the decoder of a loaded model attend so, for whole prompts: generation must not use a cache.

    The map of a whole prompt is in memory, [B, H, T, T]: this is for measuring small models.
    """
    decoder = model.get_decoder()
    state = _Positions(config)
    decoder.rotary_emb.register_forward_hook(state.take)
    AttentionInterface.register(_ATTENTION_NAME, state.attend)
    AttentionMaskInterface.register(_ATTENTION_NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": _ATTENTION_NAME})
    model.generation_config.use_cache = False


class _Positions:
    """The positions of the forward pass under way, and the rotations from them to the grouped ones."""

    def __init__(self, config: SelfExtend) -> None:
        self._config = config
        self._is_near_BTT = torch.empty(0)
        self._to_grouped: dict[str, tuple[Tensor, Tensor]] = {}

    def take(self, rotary: nn.Module, arguments: tuple[Any, ...], _: Any) -> None:
        """A forward hook of the rotary embedding: arguments are hidden states and positions [3, B, T]."""
        hidden, position_ids_3BT = arguments
        grouped_3BT = position_ids_3BT // self._config.group
        # Rotations add up, so what is rotated already is turned by the difference.
        self._to_grouped = {
            "query": rotary.forward(hidden, grouped_3BT + self._config.shift - position_ids_3BT),
            "key": rotary.forward(hidden, grouped_3BT - position_ids_3BT),
        }
        distance_3BTT = position_ids_3BT[..., :, None] - position_ids_3BT[..., None, :]
        self._is_near_BTT = distance_3BTT.amax(dim=0) < self._config.neighbours

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002  # prompts of one length, so causality is all there is
        *,
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """The signature of `transformers.integrations.sdpa_attention.sdpa_attention_forward`, and its result."""
        groups: Any = module.num_key_value_groups
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        far_query, far_key = (
            rotate(x, *(each[:, None] for each in self._to_grouped[side]))
            for side, x in (("query", query), ("key", key))
        )
        near_BHTT, far_BHTT = query @ key.mT, far_query @ far_key.mT
        logits_BHTT = scaling * torch.where(self._is_near_BTT[:, None], near_BHTT, far_BHTT)
        future_TT = torch.ones(logits_BHTT.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        attention_BHTT = logits_BHTT.masked_fill(future_TT, -torch.inf).softmax(dim=-1)
        return (attention_BHTT @ value).transpose(1, 2).contiguous(), None
