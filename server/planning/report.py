"""A serving plan as text and as JSON."""

from collections.abc import Sequence
from typing import Any

from server.planning.decoder import DecoderShape
from server.planning.plan import LENGTHS, Plan
from server.planning.room import GIB

UNITS = ((GIB, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


def to_dict(plan: Plan) -> dict[str, Any]:
    """Plain values; sizes in bytes and tokens, memory of a GPU in GiB."""
    options, window = plan.options, plan.checkpoint.effective_window
    return {
        "checkpoint": str(plan.checkpoint.path),
        "family": plan.checkpoint.model_type,
        "dtype": plan.dtype,
        "kv_dtype": options.kv_dtype,
        "tensor_parallel": options.tensor_parallel,
        "weights": {
            "stored_bytes": plan.weights.stored_bytes,
            "loaded_bytes": plan.weights.loaded_bytes(plan.dtype),
        },
        "kv_cache_bytes_per_token": plan.token_bytes,
        "kv_cache_bytes_per_token_and_gpu": plan.gpu_token_bytes,
        "context_length_tokens": plan.checkpoint.context_length,
        "effective_window_tokens": None if window is None else window.tokens,
        "sliding_window_tokens": plan.decoder.sliding_window,
        "images": [
            {"width": size.width, "height": size.height, "tokens": tokens, "kv_cache_bytes": tokens * plan.token_bytes}
            for size in options.images
            for tokens in (plan.checkpoint.image_rule.count(size),)
        ],
        "assumed": {"utilization": options.utilization, "reserve_gib": options.reserve_gib},
        "gpus": [_gpu(plan, memory) for memory in options.memory_gib],
    }


def to_text(plan: Plan) -> str:
    """Tables for a terminal."""
    return "\n\n".join(["\n".join(_sizes(plan)), "\n".join(_rooms(plan)), "\n".join(_notes(plan))])


def format_bytes(count: int) -> str:
    """In the largest unit of which there is one."""
    for size, unit in UNITS:
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _gpu(plan: Plan, memory_gib: float) -> dict[str, Any]:
    room = plan.room(memory_gib)
    return {
        "memory_gib": memory_gib,
        "kv_cache_bytes": max(0, room.num_bytes),
        "tokens": room.tokens,
        "requests": [
            {"length": name, "tokens": tokens, "requests": room.requests(tokens)}
            for name, tokens in plan.lengths().items()
        ],
    }


def _sizes(plan: Plan) -> list[str]:
    checkpoint, options = plan.checkpoint, plan.options
    loaded = plan.weights.loaded_bytes(plan.dtype)
    kept = "" if checkpoint.dtype == plan.dtype else f" (the checkpoint: {checkpoint.dtype})"
    rows = [
        ("weights", format_bytes(loaded), f"{format_bytes(plan.weights.stored_bytes)} in the files"),
        ("KV cache of a token", format_bytes(plan.token_bytes), _product(plan.decoder, plan.value_bytes)),
    ]
    for size in options.images:
        tokens = checkpoint.image_rule.count(size)
        name = f"image of {size.width}x{size.height}"
        rows.append((name, format_bytes(tokens * plan.token_bytes), f"{tokens} tokens"))
    title = f"{checkpoint.path} ({checkpoint.model_type}), served as {plan.dtype}{kept}"
    return [title, "", *(f"{name:22}{value:>12}   {how}" for name, value, how in rows)]


def _product(decoder: DecoderShape, value_bytes: int) -> str:
    return (
        f"{decoder.num_layers} layers x 2 x {decoder.num_key_value_heads} KV heads "
        f"x {decoder.head_size} x {value_bytes} bytes"
    )


def _rooms(plan: Plan) -> list[str]:
    memories = plan.options.memory_gib
    rooms = [plan.room(memory) for memory in memories]
    num_gpus = plan.options.tensor_parallel
    title = "one GPU of" if num_gpus == 1 else f"{num_gpus} GPUs, each of"
    lines = [_line(title, [f"{memory:g} GiB" for memory in memories])]
    lines.append(_line("KV cache", [format_bytes(r.num_bytes) if r.num_bytes > 0 else "none" for r in rooms]))
    lines.append(_line("tokens that fit", [f"{room.tokens:,}" for room in rooms]))
    for name, tokens in plan.lengths().items():
        label = f"requests of {tokens:,} tokens" + ("" if name.endswith("k") else f", the {name}")
        lines.append(_line(label, [f"{room.requests(tokens):,}" for room in rooms]))
    return lines


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:44}" + "".join(f"{cell:>13}" for cell in cells)


def _notes(plan: Plan) -> list[str]:
    options = plan.options
    notes = [
        f"Assumed: vLLM may use {options.utilization:.0%} of a GPU (--utilization), of which {options.reserve_gib:g} "
        "GiB go to activations, CUDA graphs and libraries (--reserve).",
        'What vLLM measures instead stands in its log: "Available KV cache memory" and "KV cache size".',
        "A request's tokens are those of its prompt, images included, and of its answer. Shared prefixes count once.",
    ]
    if longer := [tokens for tokens in LENGTHS if tokens > plan.checkpoint.context_length]:
        names = ", ".join(f"{tokens // 1024}k" for tokens in longer)
        notes.append(f"Requests of {names} tokens are longer than the context length.")
    if plan.decoder.sliding_window is not None:
        notes.append(
            f"config.json asks for a sliding window of {plan.decoder.sliding_window} tokens; planned as if every "
            "layer kept all tokens, so more may fit."
        )
    if options.tensor_parallel > plan.decoder.num_key_value_heads:
        notes.append(
            f"{options.tensor_parallel} GPUs share {plan.decoder.num_key_value_heads} KV heads, so each head is in "
            "several caches."
        )
    return notes
