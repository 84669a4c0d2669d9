"""The plan's bytes of a token against the cache that the real engine makes, in every family."""

import pytest

from server.planning.plan import Options, make_plan
from server.planning.room import GIB, Room
from tests.server.families.tiny_engines import ARCHITECTURES, CACHE_GIB, TinyEngine

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("name", ["teacher", *ARCHITECTURES])
def test_the_cache_is_the_engines(tiny_engines: dict[str, TinyEngine], name: str) -> None:
    engine = tiny_engines[name]
    plan, cache = make_plan(engine.folder, Options(dtype="float32")), engine.cache
    room = Room(num_bytes=CACHE_GIB * GIB, token_bytes=plan.gpu_token_bytes, block_tokens=cache["block_tokens"])

    assert (room.num_blocks, room.tokens) == (cache["blocks"], cache["tokens"])
    # What the engine allocates is whole blocks: less than one is left over of what it was given.
    assert room.tokens * plan.token_bytes == cache["bytes"]
    assert 0 <= CACHE_GIB * GIB - cache["bytes"] < room.block_tokens * plan.token_bytes
