"""A serving plan: a checkpoint's sizes, and what of it fits into GPUs of some memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.checkpoint import Checkpoint, read_checkpoint
from server.families import read_processor_files
from server.media.images import ImageSize
from server.planning.decoder import DecoderShape, read_decoder
from server.planning.room import RESERVE_GIB, UTILIZATION, Room, make_room
from server.planning.weights import DTYPE_BYTES, Weights, read_weights

LENGTHS = (8 * 1024, 32 * 1024, 128 * 1024)
KV_DTYPES = ("auto", "fp8")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the operator chooses."""

    memory_gib: Sequence[float] = (24, 48, 80, 141)
    """Of one GPU; several are planned beside each other."""
    utilization: float = UTILIZATION
    reserve_gib: float = RESERVE_GIB
    dtype: str = "auto"
    kv_dtype: str = "auto"
    tensor_parallel: int = 1
    images: Sequence[ImageSize] = field(
        default_factory=lambda: (ImageSize(width=640, height=480), ImageSize(width=1024, height=1024))
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `laid-serve plan` finds out."""

    checkpoint: Checkpoint
    decoder: DecoderShape
    weights: Weights
    options: Options
    dtype: str
    """In which the engine serves."""

    @property
    def value_bytes(self) -> int:
        """Of one number in the cache."""
        return 1 if self.options.kv_dtype == "fp8" else DTYPE_BYTES[self.dtype]

    @property
    def token_bytes(self) -> int:
        """Of one token, on all GPUs together."""
        return self.gpu_token_bytes * self.options.tensor_parallel

    @property
    def gpu_token_bytes(self) -> int:
        """Of one token, on each GPU."""
        return self.decoder.token_bytes(self.value_bytes, self.options.tensor_parallel)

    def room(self, memory_gib: float) -> Room:
        """The cache on GPUs of this memory, over which the weights are spread evenly."""
        return make_room(
            memory_gib=memory_gib,
            utilization=self.options.utilization,
            reserve_gib=self.options.reserve_gib,
            weight_bytes=-(-self.weights.loaded_bytes(self.dtype) // self.options.tensor_parallel),
            token_bytes=self.gpu_token_bytes,
        )

    def lengths(self) -> dict[str, int]:
        """Tokens of the requests that are planned, by name, those that the model accepts."""
        context = self.checkpoint.context_length
        named = {f"{tokens // 1024}k": tokens for tokens in LENGTHS if tokens <= context}
        named["context length"] = context
        window = self.checkpoint.effective_window
        if window is not None and window.tokens >= 1:
            named["effective window"] = int(window.tokens)
        return named


def make_plan(folder: Path, options: Options) -> Plan:
    """Reads a checkpoint folder.

    Raises:
        CheckpointError: a file or key is missing, or the family is not one whose tokens can be counted.
        ValueError: the heads cannot be shared by so many GPUs, or an image has a shape that the model refuses.
    """
    checkpoint = read_checkpoint(folder)
    decoder = read_decoder(read_processor_files(folder))
    if decoder.num_heads % options.tensor_parallel:
        raise ValueError(
            f"--tensor-parallel {options.tensor_parallel}: expected a number that divides the model's "
            f"{decoder.num_heads} attention heads"
        )
    for size in options.images:
        checkpoint.image_rule.count(size)
    return Plan(
        checkpoint=checkpoint,
        decoder=decoder,
        weights=read_weights(folder),
        options=options,
        dtype=_served_dtype(checkpoint, options),
    )


def _served_dtype(checkpoint: Checkpoint, options: Options) -> str:
    """vLLM's "auto" on a GPU: the checkpoint's own, and bfloat16 for a float32 one."""
    if options.dtype != "auto":
        return options.dtype
    return checkpoint.dtype if checkpoint.dtype in ("bfloat16", "float16") else "bfloat16"
