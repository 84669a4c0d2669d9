"""What fits into a GPU beside the weights."""

from dataclasses import dataclass

GIB = 1024**3
UTILIZATION = 0.92
"""vLLM 0.32's own default of --gpu-memory-utilization."""
RESERVE_GIB = 4.0
"""An assumption: activations, the vision tower's peak, CUDA graphs and libraries, which vLLM measures at its start."""
BLOCK_TOKENS = 16
"""vLLM's default on a GPU; on CPU it is 128."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A key-value cache."""

    num_bytes: int
    """On each GPU; less than nothing where the weights do not fit."""
    token_bytes: int
    """On each GPU."""
    block_tokens: int = BLOCK_TOKENS
    """The cache is given out in blocks of so many tokens."""

    @property
    def num_blocks(self) -> int:
        """Whole blocks; vLLM keeps the first for itself, which its own figure of tokens counts too."""
        return max(0, self.num_bytes) // (self.block_tokens * self.token_bytes)

    @property
    def tokens(self) -> int:
        """That fit, of all requests together: what vLLM logs as its KV cache size."""
        return self.num_blocks * self.block_tokens

    def requests(self, tokens: int) -> int:
        """How many requests of so many tokens, prompt and answer together, fit at the same time."""
        return self.num_blocks // -(-tokens // self.block_tokens)


def make_room(
    *, memory_gib: float, utilization: float, reserve_gib: float, weight_bytes: int, token_bytes: int
) -> Room:
    """The cache of one GPU.

    Args:
        weight_bytes: of this GPU's share of the weights.
        token_bytes: of one token's share of this GPU.
    """
    num_bytes = int((memory_gib * utilization - reserve_gib) * GIB) - weight_bytes
    return Room(num_bytes=num_bytes, token_bytes=token_bytes)
