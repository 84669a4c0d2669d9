"""Where one model family keeps what a gain needs."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Names only: classes are given as "module:Class", so that nothing is imported before it is needed."""

    architecture: str
    """The stock class in transformers, as config.json names it."""

    decoder: str
    """Path of the text decoder, the module that has `layers`, in transformers, and so in a checkpoint's names."""

    attention: str
    """The decoder's attention class in transformers."""

    rotary_embedding: str
    """The decoder's rotary embedding class in transformers."""

    vllm_model: str
    """The stock class in vLLM."""

    vllm_decoder: str
    """Path of the text decoder in vLLM."""

    vllm_renames: tuple[tuple[str, str], ...] = ()
    """How tensors' names begin as transformers saves them, and as the stock class in vLLM expects them."""

    @property
    def laid_architecture(self) -> str:
        """The name in the config.json of a checkpoint with gains, which stock engines do not know."""
        return f"LAid{self.architecture}"

    def gain_prefix(self, layer: int) -> str:
        """What precedes `.query_a` and the others in the names of a layer's gain tensors."""
        return f"{self.decoder}.layers.{layer}.self_attn.rope_gain"
