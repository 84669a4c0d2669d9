"""Takes rotated queries and keys out of a running model, through transformers' AttentionInterface.

`output_attentions` would materialise every attention map; this hands over the two inputs of a map instead.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill.signals import QueryKey

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "laid_capture_sdpa"


class QueryKeyRecorder:
    """Collects the queries and keys of the wanted layers in one call of a model: `model(..., qk_recorder=recorder)`."""

    def __init__(self, layers: Collection[int]) -> None:
        self._wanted = frozenset(layers)
        self.layers: dict[int, QueryKey] = {}

    def record(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, scale: float) -> None:
        """Keeps the tensors, with their gradients, if the layer is wanted.

        A second call is gradient checkpointing's, which runs the layer again; its tensors are not the loss's.
        """
        if layer in self._wanted and layer not in self.layers:
            self.layers[layer] = QueryKey(q_BHTD=query_BHTD, k_BKTD=key_BKTD, scale=scale)


def enable_capture(model: "PreTrainedModel") -> None:
    """Makes the decoder layers of the model use SDPA that shows q and k to a `qk_recorder`, where one is passed."""
    AttentionInterface.register(ATTENTION_NAME, _capturing_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": ATTENTION_NAME})


def _capturing_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    qk_recorder: QueryKeyRecorder | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The signature of `transformers.integrations.sdpa_attention.sdpa_attention_forward`, and its result."""
    if qk_recorder is not None:
        qk_recorder.record(module.layer_idx, query, key, kwargs["scaling"])  # type: ignore[arg-type]
    output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output
