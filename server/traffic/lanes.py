"""Shares something bounded (prefill tokens, bytes of memory) so that small requests never wait behind large ones."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.errors import GatewayError
from server.telemetry.lane_metrics import LaneMetrics

# How much a lane's releases so far weigh in its measured rate when the next one comes.
RATE_MEMORY = 0.9


@dataclass(eq=False)
class Room:
    """What one request holds, or waits for; as a context manager it is given back at the end at the latest."""

    amount: int
    _lanes: "Lanes"
    _lane: "_Lane"
    _granted: asyncio.Future[None] | None = None
    """Of one that had to wait."""

    def shrink(self, amount: int) -> None:
        """Keeps only `amount` of it."""
        self._lanes._shrink(self, amount)

    def release(self) -> None:
        """Gives it back; doing so again changes nothing."""
        self._lanes._release(self)

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Lanes:
    """Grants room out of a total, by classes of size.

    Each lane owns room for one of its largest requests, which no other lane can take; the rest of the total is shared
    by all. So whatever fills the other lanes, the first in line of a lane moves as soon as its own lane is empty:
    neither do short requests wait for long ones, nor do many short ones starve a long one. A lane is first in, first
    out, and when shared room becomes free the shorter lanes are asked first.
    """

    def __init__(
        self,
        *,
        total: int,
        largest: Sequence[int],
        max_waiting: int,
        max_wait_seconds: float,
        refusal: Callable[[float | None], GatewayError],
        metrics: Sequence[LaneMetrics],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`largest` is the largest request of each lane, ascending; `max_waiting` holds for each lane.

        `refusal` makes the error for a request that may not wait, from the seconds until what is before it is gone,
        or None as long as the lane has released nothing by which to measure. `metrics` are each lane's.

        Raises:
            ValueError: the total is less than the lanes own.
        """
        if total < sum(largest):
            raise ValueError(
                f"expected at least {sum(largest)}, one of the largest requests of each class; got {total}"
            )
        self._shared = total - sum(largest)
        self._lanes = [_Lane(amount, own) for amount, own in zip(largest, metrics, strict=True)]
        self._max_waiting = max_waiting
        self._max_wait_seconds = max_wait_seconds
        self._refusal = refusal
        self._clock = clock

    async def take(self, amount: int) -> Room:
        """Waits for room; cancelled, it leaves no trace.

        Args:
            amount: at most the last lane's largest.

        Raises:
            GatewayError: the lane's queue is full, or the wait is or would be longer than allowed.
        """
        lane = next(lane for lane in self._lanes if amount <= lane.largest)
        room = Room(amount, self, lane)
        started = self._clock()
        if not lane.waiting and self._fits(lane, amount):
            lane.use(amount, started)
        else:
            seconds = lane.seconds_until(amount)
            if len(lane.waiting) >= self._max_waiting or (seconds or 0) > self._max_wait_seconds:
                raise self._refusal(seconds)
            await self._wait(room)
        lane.metrics.wait_seconds.observe(self._clock() - started)
        return room

    async def _wait(self, room: Room) -> None:
        lane = room._lane
        granted = room._granted = asyncio.get_running_loop().create_future()
        lane.join(room)
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await granted
        except TimeoutError:
            self._give_up(room, granted)
            raise self._refusal(lane.seconds_until(room.amount)) from None
        except asyncio.CancelledError:
            self._give_up(room, granted)
            raise

    def _give_up(self, room: Room, granted: asyncio.Future[None]) -> None:
        if not granted.cancelled():
            # It was granted in the moment in which it was given up.
            room.release()
        elif room in room._lane.waiting:
            room._lane.leave(room)
            # Whoever was behind may fit where this one did not.
            self._grant_waiting()

    def _fits(self, lane: "_Lane", amount: int) -> bool:
        others = sum([other.excess() for other in self._lanes if other is not lane])
        return others + lane.excess(amount) <= self._shared

    def _grant_waiting(self) -> None:
        for lane in self._lanes:
            while lane.waiting and self._fits(lane, lane.waiting[0].amount):
                room = lane.waiting[0]
                lane.leave(room)
                # A cancelled one is still here until its own task has run.
                if room._granted is not None and not room._granted.done():
                    room._granted.set_result(None)
                    lane.use(room.amount, self._clock())

    def _shrink(self, room: Room, amount: int) -> None:
        assert amount <= room.amount  # noqa: S101 - nobody asks to grow
        if amount < room.amount:
            room._lane.use(amount - room.amount, self._clock())
            room.amount = amount
            self._grant_waiting()

    def _release(self, room: Room) -> None:
        if room.amount:
            room._lane.measure(room.amount, self._clock())
            self._shrink(room, 0)


class _Lane:
    """One class of size: what it uses, who waits for it, and how fast it gives room back."""

    def __init__(self, largest: int, metrics: LaneMetrics) -> None:
        self.largest = largest
        self.metrics = metrics
        self.waiting: deque[Room] = deque()
        self._used = 0
        self._queued = 0
        # What was given back while the lane was in use, and in how long, the latest counting most.
        self._measured_amount = 0.0
        self._measured_seconds = 0.0
        self._measured_until = 0.0

    def excess(self, amount: int = 0) -> int:
        """How much of the room that all share this lane takes with `amount` more."""
        return max(0, self._used + amount - self.largest)

    def join(self, room: Room) -> None:
        self.waiting.append(room)
        self._queued += room.amount
        self.metrics.waiting.inc()

    def leave(self, room: Room) -> None:
        self.waiting.remove(room)
        self._queued -= room.amount
        self.metrics.waiting.dec()

    def use(self, amount: int, now: float) -> None:
        if not self._used:
            self._measured_until = now
        self._used += amount
        self.metrics.in_flight.inc(amount)

    def measure(self, released: int, now: float) -> None:
        self._measured_amount = RATE_MEMORY * self._measured_amount + released
        self._measured_seconds = RATE_MEMORY * self._measured_seconds + now - self._measured_until
        self._measured_until = now

    def seconds_until(self, amount: int) -> float | None:
        """How long the releases take that `amount` has to wait for at the end of the queue; None if never measured."""
        if not self._measured_amount:
            return None
        return self.excess(self._queued + amount) * self._measured_seconds / self._measured_amount
