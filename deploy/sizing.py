"""Prints the tables of README.md's "Sizing": python deploy/sizing.py

For the models of distill/recipes/shapes, from their published shapes, by the arithmetic of `laid-serve plan`. The
parameters are counted on transformers' own classes, without weights. How many tokens an image takes is told by each
family's processor, whose published numbers stand here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rope_gain import wheel_guard

wheel_guard.install()

from distill.planning.shapes import ModelShape, load_shape  # noqa: E402
from distill.recipe import ModelConfig  # noqa: E402
from server.families.image_rule import ImageRule  # noqa: E402
from server.families.internvl import InternVLRule  # noqa: E402
from server.families.qwen_vl import QwenRule  # noqa: E402
from server.media.images import ImageSize  # noqa: E402
from server.planning.decoder import DecoderShape  # noqa: E402
from server.planning.plan import LENGTHS, Options  # noqa: E402
from server.planning.report import format_bytes  # noqa: E402
from server.planning.room import Room, make_room  # noqa: E402

MODELS = (
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-32B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "OpenGVLab/InternVL3-8B-hf",
)
RULES: dict[str, ImageRule] = {
    "qwen2_5_vl": QwenRule(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 16384),
    "qwen3_vl": QwenRule(patch_size=16, merge_size=2, min_pixels=65536, max_pixels=16777216),
    "internvl": InternVLRule(
        tile=ImageSize(width=448, height=448),
        min_tiles=1,
        max_tiles=12,
        tokens_per_tile=256,
        placeholder="<IMG_CONTEXT>",
        start="<img>",
        end="</img>",
    ),
}
BFLOAT16_BYTES = 2
ONE_GPU_GIB = 80


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A published model in bfloat16."""

    name: str
    shape: ModelShape
    options: Options

    @property
    def weight_bytes(self) -> int:
        """Of all parameters."""
        return self.shape.parameters.total * BFLOAT16_BYTES

    @property
    def token_bytes(self) -> int:
        """Of one token in the cache."""
        decoder = self.shape.decoder
        shape = DecoderShape(
            num_layers=decoder.num_layers,
            num_heads=decoder.num_heads,
            num_key_value_heads=decoder.num_key_value_heads,
            head_size=decoder.head_size,
            sliding_window=None,
        )
        return shape.token_bytes(BFLOAT16_BYTES)

    def room(self, memory_gib: float) -> Room:
        """On one GPU."""
        return make_room(
            memory_gib=memory_gib,
            utilization=self.options.utilization,
            reserve_gib=self.options.reserve_gib,
            weight_bytes=self.weight_bytes,
            token_bytes=self.token_bytes,
        )


def tables() -> str:
    """Both, in Markdown."""
    models = [Sized(name=name, shape=load_shape(ModelConfig(path=name), name), options=Options()) for name in MODELS]
    sizes = models[0].options.images
    memories = models[0].options.memory_gib
    first = [["model", "weights", "a token", *(f"an image of {size.width}x{size.height}" for size in sizes)]]
    second = [
        ["model", *(f"tokens in {memory:g} GiB" for memory in memories)]
        + [f"requests of {tokens // 1024}k in {ONE_GPU_GIB} GiB" for tokens in LENGTHS]
    ]
    for model in models:
        name = model.name.partition("/")[2]
        images = [_image(model, size) for size in sizes]
        first.append([name, format_bytes(model.weight_bytes), format_bytes(model.token_bytes), *images])
        fits = [_number(model.room(memory).tokens) for memory in memories]
        room = model.room(ONE_GPU_GIB)
        second.append([name, *fits, *(_number(room.requests(tokens)) for tokens in LENGTHS)])
    return _table(first) + "\n" + _table(second)


def _image(model: Sized, size: ImageSize) -> str:
    tokens = RULES[model.shape.family].count(size)
    return f"{tokens:,} tokens, {format_bytes(tokens * model.token_bytes)}"


def _number(count: int) -> str:
    return f"{count:,}" if count else "none"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|---" * len(rows[0]) + "|\n" + "".join(body)


if __name__ == "__main__":
    print(tables(), end="")
