"""The LAid architectures: stock vLLM models whose decoder layers rotate with a gain."""

import dataclasses
import importlib
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.model_executor.models.utils import PPMissingLayer

from rope_gain.config import RopeGainConfig
from rope_gain.families import Family, find_family
from rope_gain.vllm.check import check_rotation
from rope_gain.vllm.rotary import GainedRotaryEmbedding, HeadRange
from rope_gain.vllm.terms import StepTerms

# Under vLLM's own name, whose logging is set up; others stay silent below warnings.
logger = init_logger(f"vllm.{__name__}")

PADDING_TOKENS = 512

if TYPE_CHECKING:

    class _Base(nn.Module):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]: ...

else:
    _Base = object


@cache
def laid_class(architecture: str) -> type[nn.Module]:
    """The vLLM class of a LAid architecture: the family's stock class, with gains.

    Raises:
        ValueError: the architecture belongs to no supported family.
    """
    family = find_family(architecture)
    module, _, name = family.vllm_model.partition(":")
    stock = getattr(importlib.import_module(module), name)
    content = {"__module__": __name__, "__doc__": f"{family.architecture} with gains.", "family": family}
    return type(family.laid_architecture, (GainedModel, stock), content)


class GainedModel(_Base):
    """Mixed in before a stock vLLM model class; gives each gained decoder layer its own rotary embedding."""

    family: ClassVar[Family]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        if vllm_config.parallel_config.use_ubatching:
            raise ValueError(
                "enable_dbo, ubatch_size: got micro-batches, expected none: two at once would share one step's terms"
            )
        _switch_off_rope_fusions(vllm_config.compilation_config.pass_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        block = getattr(vllm_config.model_config.hf_config, "rope_gain", None)
        if block is None:
            raise ValueError(f"config.json: no rope_gain block, expected one with {type(self).__name__}")
        config = RopeGainConfig.from_dict(block)
        layers: Any = self.get_submodule(self.family.vllm_decoder).layers
        # Steps may be padded, to the sizes of CUDA graphs or a multiple of the processes.
        max_tokens = vllm_config.scheduler_config.max_num_batched_tokens + PADDING_TOKENS
        install = _Installation(config, max_tokens)
        # What the gained rotary embeddings stand in for, by the layer's name; of this process's layers only.
        self.stock_rotary = {
            f"{self.family.vllm_decoder}.layers.{number}.self_attn": install(layers[number].self_attn)
            for number in config.gained_layers(len(layers))
            if not isinstance(layers[number], PPMissingLayer)
        }
        self.step_terms = tuple(install.terms.values())
        self.missing_gains = self._gain_parameters()

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock method, after filling what the gained layers read; torch.compile sees the decoder alone."""
        for terms in self.step_terms:
            terms.fill(positions)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As the stock method, and every gain tensor of this process's layers has to be there.

        vLLM's own check for parameters without a weight is off for quantised models, and a gain left at its
        initial value would be a stock model served under a LAid name. Later calls, which replace weights of a
        running model, may bring some tensors only.

        Raises:
            ValueError: a gain tensor is missing; one has another shape than the model's sizes call for.
        """
        loaded = super().load_weights((self._rename(name), tensor) for name, tensor in weights)
        self.missing_gains -= loaded
        if self.missing_gains:
            raise ValueError(f"checkpoint: no weights for {', '.join(sorted(self.missing_gains))}")
        return loaded

    def process_weights_after_loading(self) -> None:
        """Called by vLLM in each worker when the weights have their final form: checks one layer's rotation.

        Raises:
            RuntimeError: what the layer computes is not the gain's formula.
        """
        for name, stock in list(self.stock_rotary.items())[:1]:
            rotary: Any = self.get_submodule(f"{name}.rotary_emb")
            difference = check_rotation(name, rotary, stock)
            logger.info("%s: rotation with gain checked, off by %.1e of the largest value", name, difference)

    def _rename(self, name: str) -> str:
        for saved, expected in self.family.vllm_renames:
            if name.startswith(saved):
                name = name.replace(saved, expected, 1)
        # In the checkpoint the gain stands beside the projections; here it belongs to the module that applies it.
        return name.replace(".self_attn.rope_gain.", ".self_attn.rotary_emb.")

    def _gain_parameters(self) -> set[str]:
        return {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if isinstance(module, GainedRotaryEmbedding)
            for name, _ in module.named_parameters(recurse=False)
        }


def _switch_off_rope_fusions(passes: Any) -> None:
    """Keeps vLLM's compiler from fusing the rotation with a norm or with the write to the key-value cache.

    None of these passes can match a gained layer, whose rotation is another operator; this keeps it so in
    versions to come.
    """
    fusions = [field.name for field in dataclasses.fields(passes) if "rope" in field.name]
    for name in fusions:
        if getattr(passes, name) is True:
            setattr(passes, name, False)
            logger.info("pass_config.%s: switched off, since a fused rotation would drop the gain", name)


class _Installation:
    """Puts gained rotary embeddings into attention layers, over terms that layers of equal rotation share."""

    def __init__(self, config: RopeGainConfig, max_tokens: int) -> None:
        self.terms: dict[Any, StepTerms] = {}
        self._config = config
        self._max_tokens = max_tokens

    def __call__(self, attention: Any) -> Any:
        """Replaces the rotary embedding that vLLM's `get_rope` shares between the layers, and returns it."""
        stock = attention.rotary_emb
        if stock not in self.terms:
            length = self._config.reference_length if self._config.position == "log" else None
            self.terms[stock] = StepTerms(stock, reference_length=length, max_tokens=self._max_tokens)
        rank = get_tensor_model_parallel_rank()
        # As in QKVParallelLinear: with fewer key-value heads than processes, neighbours hold copies of one head.
        num_ranks = attention.total_num_heads // attention.num_heads
        copies = max(1, num_ranks // attention.total_num_kv_heads)
        attention.rotary_emb = GainedRotaryEmbedding(
            self.terms[stock],
            self._config,
            head_size=stock.head_size,
            query_heads=HeadRange(attention.total_num_heads, rank * attention.num_heads, attention.num_heads),
            key_heads=HeadRange(
                attention.total_num_kv_heads, rank // copies * attention.num_kv_heads, attention.num_kv_heads
            ),
        )
        return stock
