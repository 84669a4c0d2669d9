"""Takes rotated queries and keys out of a running model, through transformers' AttentionInterface.

`output_attentions` would materialise every attention map; this hands over the two inputs of a map instead. Beside them
it keeps the samples of a packed row apart, of whose beginning and end the model's own layers know nothing.
"""

import importlib.util
import itertools
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flex_attention_mask

from distill.recipe import AttentionKind
from distill.signals import QueryKey

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAMES: dict[AttentionKind, str] = {
    "sdpa": "laid_capture_sdpa",
    "flash_attention_2": "laid_capture_flash",
    "flex_attention": "laid_capture_flex",
}
"""What the capturing attention functions are called in transformers."""

_Attention = Callable[..., tuple[Tensor, Tensor | None]]


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


def check_attention(attention: AttentionKind, device: torch.device) -> None:
    """Makes sure that a model on this device can be trained, or teach, with this attention.

    Raises:
        ValueError: it lacks a package, or needs a GPU.
    """
    advice = "use sdpa, which on a GPU runs PyTorch's own flash attention"
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ValueError(
            "train.attention: 'flash_attention_2' needs the package flash-attn, which is not installed; "
            f"pip install flash-attn --no-build-isolation, or {advice}"
        )
    if attention != "sdpa" and device.type != "cuda":
        raise ValueError(f"train.attention: {attention!r} does not train on {device.type}, expected a GPU; {advice}")


def enable_capture(model: "PreTrainedModel", attention: AttentionKind = "sdpa") -> None:
    """Makes the decoder layers of the model show their q and k to a `qk_recorder`, where one is passed.

    Samples are causal and padded on the right, or packed with the keyword `segment_lengths` and four axes of
    position ids (see `ModelInputs`). No mask of T x T is made: SDPA and flash attention are told the lengths, and
    flex attention gets transformers' block mask, which tells samples apart by the first axis.
    """
    name = ATTENTION_NAMES[attention]
    attentions: dict[AttentionKind, _Attention] = {
        "sdpa": _sdpa,
        "flash_attention_2": _flash,
        "flex_attention": _flex,
    }
    AttentionInterface.register(name, _capturing(attentions[attention]))
    if attention == "flex_attention":
        AttentionMaskInterface.register(name, flex_attention_mask)
    model.set_attn_implementation({"text_config": name})


def _capturing(attend: _Attention) -> _Attention:
    """A function of transformers' attention interface, which shows q and k before it attends."""

    def capture(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *,
        qk_recorder: QueryKeyRecorder | None = None,
        segment_lengths: list[int] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if qk_recorder is not None:
            qk_recorder.record(module.layer_idx, query, key, kwargs["scaling"])  # type: ignore[arg-type]
        return attend(module, query, key, value, attention_mask, segment_lengths, **kwargs)

    return capture


def _sdpa(
    module: nn.Module,
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    attention_mask: None,
    segment_lengths: list[int] | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Plain causal SDPA of each sample of a packed row on its own: exact, and linear in memory where SDPA is."""
    if segment_lengths is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(module, q_BHTD, k_BKTD, v_BKTD, attention_mask, **kwargs)
        return output
    segments = zip(*(torch.split(x, segment_lengths, dim=2) for x in (q_BHTD, k_BKTD, v_BKTD)), strict=True)
    outputs = [sdpa_attention_forward(module, *qkv, attention_mask, **kwargs)[0] for qkv in segments]
    return torch.cat(outputs, dim=1), None


def _flash(
    _module: nn.Module,
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    _attention_mask: None,
    segment_lengths: list[int] | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """The package's own function for samples laid one after the other, as padded ones are too."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    num_rows, num_tokens = len(q_BHTD), q_BHTD.shape[2]
    lengths = segment_lengths or [num_tokens] * num_rows
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=q_BHTD.device)
    # Under autocast the rotary embedding widens q and k; v is as the projections gave it.
    q_NHD, k_NKD, v_NKD = (x.transpose(1, 2).flatten(0, 1).to(v_BKTD.dtype) for x in (q_BHTD, k_BKTD, v_BKTD))
    output_NHD = flash_attn_varlen_func(
        q_NHD,
        k_NKD,
        v_NKD,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=max(lengths),
        max_seqlen_k=max(lengths),
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
    )
    return output_NHD.unflatten(0, (num_rows, num_tokens)), None


def _flex(
    module: nn.Module,
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    attention_mask: Any,
    _segment_lengths: list[int] | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The block mask keeps the samples of a packed row apart."""
    output: tuple[Tensor, Tensor | None] = flex_attention_forward(
        module, q_BHTD, k_BKTD, v_BKTD, attention_mask, **kwargs
    )
    return output
