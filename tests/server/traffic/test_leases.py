"""Places shared through a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from server.settings import Settings
from server.telemetry.metrics import Metrics
from server.traffic.leases import Leases
from server.traffic.storage import Storage

LONG = 3600.0


@pytest.fixture
async def make_leases(redis: Any, make_settings: Callable[..., Settings]) -> AsyncIterator[Callable[..., Leases]]:
    """Each as another gateway has it."""
    storages = []

    def make(lease_seconds: float = LONG) -> Leases:
        settings = make_settings(limits_storage=redis.url, limits_timeout_seconds=60.0)
        storages.append(storage := Storage(settings, Metrics("tiny", engines=["0"])))
        assert storage.pool is not None
        return Leases(storage, storage.pool, lease_seconds=lease_seconds)

    yield make
    for storage in storages:
        await storage.aclose()


async def test_a_name_has_so_many_places_in_all_gateways_together(make_leases: Callable[..., Leases]) -> None:
    gateways = [make_leases(), make_leases()]
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(gateways[i % 2].hold("alice", 3)) for i in range(5)]
        other = await stack.enter_async_context(gateways[0].hold("bob", 1))

    assert found == [True, True, True, False, False]
    assert other
    async with gateways[1].hold("alice", 1) as is_free:
        assert is_free, "all were given back"


async def test_the_places_of_a_gateway_that_was_killed_run_out(make_leases: Callable[..., Leases]) -> None:
    killed = make_leases(lease_seconds=0.05)
    abandoned = killed.hold("alice", 1)
    assert await abandoned.__aenter__()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()  # it renews nothing any more

    async with asyncio.timeout(60):
        while True:
            async with make_leases().hold("alice", 1) as is_free:
                if is_free:
                    return


async def test_a_place_that_is_used_is_renewed(make_leases: Callable[..., Leases], redis: Any) -> None:
    from redis.asyncio import Redis

    async with make_leases(lease_seconds=1.0).hold("alice", 1), Redis.from_url(redis.url) as client:

        async def expiry() -> float:
            places = await client.zrange("laid:slots:alice", 0, -1, withscores=True)
            return max((float(score) for _, score in places), default=0.0)

        before = await expiry()
        async with asyncio.timeout(60):
            while await expiry() <= before:  # noqa: ASYNC110 - Redis has it alone
                await asyncio.sleep(0.01)
