"""A loaded vision-language model as the trainer uses it: one forward pass in, signals out."""

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from distill.capture import QueryKeyRecorder, check_attention, enable_capture
from distill.data.batch import Batch
from distill.families import find_family
from distill.features import ImageFeatures
from distill.recipe import AttentionKind
from distill.signals import AttentionShape, Signals

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def attention_shape(config: "PreTrainedConfig") -> AttentionShape:
    """The sizes of the decoder's attention, by a vision-language model's configuration."""
    text = config.get_text_config()
    return AttentionShape(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
    )


class SignalModel:
    """A vision-language model with its cache of image features."""

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        freeze_vision: bool,
        feature_cache_bytes: int,
        attention: AttentionKind = "sdpa",
    ) -> None:
        """Takes a loaded model, on its device.

        Raises:
            ValueError: it cannot attend like this there.
        """
        check_attention(attention, model.device)
        enable_capture(model, attention)
        self.model = model
        self._family = find_family(model)
        self._features = ImageFeatures(model, is_frozen=freeze_vision, capacity_bytes=feature_cache_bytes)

    @property
    def shape(self) -> AttentionShape:
        """The sizes of the decoder's attention."""
        return attention_shape(self.model.config)

    def signals(self, batch: Batch, layers: Collection[int]) -> Signals:
        """Runs the model on the batch.

        Logits are computed on the answer rows only; the whole [B, T, vocabulary] is never in memory. There is no
        attention mask: padding is on the right, out of sight of every real row, and packed samples attend each to
        itself. Image features need no packing: they follow their placeholders.
        """
        recorder = QueryKeyRecorder(layers)
        inputs = batch.model_inputs
        features = self._features(batch.images)
        vision = {"image": self._family.vision_output(features)} if features else None
        output = self.model.base_model(
            input_ids=inputs.input_ids_BT,
            position_ids=self._family.decoder_positions(inputs.position_ids_ABT),
            mm_encoder_outputs=vision,
            use_cache=False,
            qk_recorder=recorder,
            segment_lengths=inputs.segment_lengths,
        )
        logits_NV = self.model.get_output_embeddings()(output.last_hidden_state[inputs.answer_BT])
        return Signals(logits_NV=logits_NV, layers=recorder.layers)


class Teacher(SignalModel):
    """A frozen model: its signals carry no gradients."""

    def __init__(
        self, model: "PreTrainedModel", *, feature_cache_bytes: int, attention: AttentionKind = "sdpa"
    ) -> None:
        super().__init__(
            model.eval().requires_grad_(False),
            freeze_vision=True,
            feature_cache_bytes=feature_cache_bytes,
            attention=attention,
        )

    @torch.no_grad()
    def signals(self, batch: Batch, layers: Collection[int]) -> Signals:
        """As `SignalModel.signals`, on the batch's device, wherever the teacher itself is."""
        device = batch.input_ids_BT.device
        found = super().signals(batch.to(self.model.device), layers)
        moved = {
            layer: replace(each, q_BHTD=each.q_BHTD.to(device), k_BKTD=each.k_BKTD.to(device))
            for layer, each in found.layers.items()
        }
        return replace(found, logits_NV=found.logits_NV.to(device), layers=moved)
