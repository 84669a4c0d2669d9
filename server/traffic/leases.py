"""Places that several gateways share: a set in Redis for each key, whose members run out unless they are renewed."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

from redis.asyncio import ConnectionPool, Redis

from server.traffic.storage import PREFIX, Storage

LEASE_SECONDS = 60.0
"""How long a gateway that was killed keeps its places."""

# By Redis's own clock, so that the gateways' need not agree.
_NOW = "local time = redis.call('TIME'); local now = time[1] + time[2] / 1e6 "
_TAKE = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[3]))
return 1
"""
)
_RENEW = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[2]))
"""
)


class Leases:
    """Takes and gives back places by name."""

    def __init__(self, storage: Storage, pool: ConnectionPool, *, lease_seconds: float = LEASE_SECONDS) -> None:
        """`pool` is the storage's."""
        self._storage = storage
        self._lease_seconds = lease_seconds
        self._redis = Redis(connection_pool=pool)
        self._take, self._renew = self._redis.register_script(_TAKE), self._redis.register_script(_RENEW)

    @contextlib.asynccontextmanager
    async def hold(self, name: str, limit: int) -> AsyncIterator[bool]:
        """Gives whether one of `limit` places was free, and holds it as long as the context is open.

        Raises:
            GatewayError: 503 where Redis does not answer and the settings say not to go on without.
        """
        key, member = f"{PREFIX}:slots:{name}", uuid.uuid4().hex
        is_taken = await self._storage.attempt(self._take(keys=[key], args=[member, limit, self._lease_seconds]))
        if is_taken == 0:
            yield False
            return
        renewing = asyncio.create_task(self._keep(key, member))
        try:
            yield True
        finally:
            renewing.cancel()
            with contextlib.suppress(Exception):  # it runs out by itself
                await self._storage.attempt(self._redis.zrem(key, member))

    async def _keep(self, key: str, member: str) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            with contextlib.suppress(Exception):  # Redis may be back at the next turn
                await self._storage.attempt(self._renew(keys=[key], args=[member, self._lease_seconds]))
