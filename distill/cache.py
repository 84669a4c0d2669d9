"""A cache that forgets what was used longest ago, bounded by bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteCache(Generic[Key, Value]):
    """Holds values of at most `capacity_bytes` together."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value, now the most recently used one, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value, num_bytes: int) -> None:
        """Adds a value that is not there yet and drops the ones used longest ago until all fit."""
        self._entries[key] = (value, num_bytes)
        self._used_bytes += num_bytes
        while self._used_bytes > self._capacity_bytes:
            _, (_, dropped_bytes) = self._entries.popitem(last=False)
            self._used_bytes -= dropped_bytes
