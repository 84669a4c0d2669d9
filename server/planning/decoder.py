"""What one token takes in the engine's key-value cache, by the text decoder's sizes in config.json."""

from dataclasses import dataclass
from typing import Any

from server.families.processor_files import CheckpointError, ProcessorFiles, require


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The sizes of a text decoder that decide on its cache."""

    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    sliding_window: int | None
    """In tokens, where some layers look no further back; they are planned as if they did."""

    def token_bytes(self, value_bytes: int, tensor_parallel: int = 1) -> int:
        """Bytes of one token's keys and values on each GPU.

        Args:
            value_bytes: of one number in the cache.
            tensor_parallel: GPUs that share the heads; with more of them than heads each holds a whole one
                (`vllm.config.ModelConfig.get_num_kv_heads`).
        """
        heads = max(1, self.num_key_value_heads // tensor_parallel)
        return self.num_layers * 2 * heads * self.head_size * value_bytes


def read_decoder(files: ProcessorFiles) -> DecoderShape:
    """The sizes as vLLM reads them; released checkpoints have them in `text_config` or beside it.

    Raises:
        CheckpointError: a key is missing.
    """
    source = files.path / "config.json"
    text = files.config.get("text_config", files.config)

    def number(key: str) -> int:
        value = require(text, key, source)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{source}: {key} {value!r}; expected a positive number")
        return value

    return DecoderShape(
        num_layers=number("num_hidden_layers"),
        num_heads=number("num_attention_heads"),
        num_key_value_heads=number("num_key_value_heads"),
        head_size=_head_size(files, text, number("hidden_size") // number("num_attention_heads")),
        sliding_window=text.get("sliding_window") if text.get("use_sliding_window") else None,
    )


def _head_size(files: ProcessorFiles, text: dict[str, Any], default: int) -> int:
    """Qwen3's heads have a width of their own, which only config.json tells."""
    if text.get("head_dim") is None and str(text.get("model_type")).startswith("qwen3"):
        raise files.error("config.json", "key 'head_dim' is missing, which a Qwen3 decoder needs")
    return int(text.get("head_dim") or default)
