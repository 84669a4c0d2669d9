"""The LAid architectures: stock vLLM models whose decoder layers rotate with a gain."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.utils import PPMissingLayer, WeightsMapper

from rope_gain.config import RopeGainConfig
from rope_gain.vllm.rotary import GainedRotaryEmbedding, HeadRange

# In the checkpoint the gain stands beside the projections; here it belongs to the module that applies it.
GAIN_NAMES = WeightsMapper(orig_to_new_substr={".self_attn.rope_gain.": ".self_attn.rotary_emb."})

if TYPE_CHECKING:

    class _Base(nn.Module):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]: ...

else:
    _Base = object


class GainedModel(_Base):
    """Mixed in before a stock vLLM model class; gives each gained decoder layer its own rotary embedding."""

    decoder_path: ClassVar[str]
    """Where the text decoder, the module that has `layers`, is within the model."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        block = getattr(vllm_config.model_config.hf_config, "rope_gain", None)
        if block is None:
            raise ValueError(f"config.json: no rope_gain block, expected one with {type(self).__name__}")
        config = RopeGainConfig.from_dict(block)
        layers: Any = self.get_submodule(self.decoder_path).layers
        for number in config.gained_layers(len(layers)):
            if not isinstance(layers[number], PPMissingLayer):
                _install(layers[number].self_attn, config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As the stock method, and every gain tensor of this process's layers has to be there.

        vLLM's own check for parameters without a weight is off for quantised models, and a gain left at its
        initial value would be a stock model served under a LAid name.

        Raises:
            ValueError: a gain tensor is missing; one has another shape than the model's sizes call for.
        """
        loaded = super().load_weights(weights)
        if missing := sorted(self._gain_parameters() - loaded):
            raise ValueError(f"checkpoint: no weights for {', '.join(missing)}")
        return loaded

    def _gain_parameters(self) -> set[str]:
        return {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if isinstance(module, GainedRotaryEmbedding)
            for name, _ in module.named_parameters(recurse=False)
        }


class LAidQwen2_5_VLForConditionalGeneration(  # noqa: N801 (the architecture's name in config.json)
    GainedModel, Qwen2_5_VLForConditionalGeneration
):
    """Qwen2.5-VL with gains."""

    decoder_path = "language_model.model"
    hf_to_vllm_mapper = Qwen2_5_VLForConditionalGeneration.hf_to_vllm_mapper | GAIN_NAMES


def _install(attention: Any, config: RopeGainConfig) -> None:
    """Replaces the rotary embedding that vLLM's `get_rope` shares between the layers by this layer's own."""
    rank = get_tensor_model_parallel_rank()
    # As in QKVParallelLinear: with fewer key-value heads than processes, neighbours hold copies of one head.
    num_ranks = attention.total_num_heads // attention.num_heads
    copies = max(1, num_ranks // attention.total_num_kv_heads)
    attention.rotary_emb = GainedRotaryEmbedding(
        attention.rotary_emb,
        config,
        query_heads=HeadRange(attention.total_num_heads, rank * attention.num_heads, attention.num_heads),
        key_heads=HeadRange(
            attention.total_num_kv_heads, rank // copies * attention.num_kv_heads, attention.num_kv_heads
        ),
    )
