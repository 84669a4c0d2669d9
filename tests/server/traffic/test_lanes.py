"""Who gets room and when: by examples, and by every order of asking, leaving and releasing that hypothesis tries."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from server.errors import GatewayError, Reason
from server.telemetry.instruments import Instruments
from server.telemetry.lane_metrics import make_lane_metrics
from server.traffic.lanes import Lanes, Room

# 8k, 32k and 128k in small.
LARGEST = (8, 32, 128)
TOTAL = sum(LARGEST) + 40
MAX_WAITING = 3
# The bounds of the classes and what is next to them: so that lanes are full most of the time.
AMOUNTS = (1, 7, 8, 9, 31, 32, 33, 70, 127, 128)


def refusal(seconds: float | None) -> GatewayError:
    return GatewayError(503, Reason.QUEUE_FULL, "Full.", retry_after_seconds=seconds)


class Clock:
    """Time goes on when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_lanes(clock: Callable[[], float] = lambda: 0.0, **changes: Any) -> tuple[Lanes, Instruments]:
    make = Instruments("tiny")
    metrics = make_lane_metrics(make, "prefill_tokens", "Prefill tokens", LARGEST)
    limits = {"total": TOTAL, "max_waiting": MAX_WAITING, "max_wait_seconds": 1000.0}
    lanes = Lanes(**limits | {"largest": LARGEST, "refusal": refusal, "metrics": metrics, "clock": clock} | changes)
    return lanes, make


def value(make: Instruments, name: str, lane: int) -> float:
    sample = make.registry.get_sample_value(f"laid_prefill_tokens_{name}", {"model": "tiny", "lane": str(lane)})
    assert sample is not None
    return sample


async def settle() -> None:
    """Lets every task run until it waits for something that only the test does."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_long_request_in_its_lane_leaves_short_ones_theirs() -> None:
    lanes, _ = make_lanes(total=sum(LARGEST))
    await lanes.take(128)
    waiting = asyncio.create_task(lanes.take(100))
    await settle()

    short, middle = await lanes.take(8), await lanes.take(32)

    assert not waiting.done()
    assert (short.amount, middle.amount) == (8, 32)
    waiting.cancel()


async def test_many_short_requests_leave_the_long_lane_its_own() -> None:
    lanes, _ = make_lanes()
    for _ in range(1 + 40 // 8):
        await lanes.take(8)
    waiting = [asyncio.create_task(lanes.take(8)) for _ in range(MAX_WAITING)]
    await settle()

    await lanes.take(128)

    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()


async def test_first_in_first_out_even_where_a_later_one_would_fit() -> None:
    lanes, _ = make_lanes(total=sum(LARGEST))
    first = await lanes.take(100)
    large, small = asyncio.create_task(lanes.take(128)), asyncio.create_task(lanes.take(40))
    await settle()
    # 28 of the lane's 128 are free.
    late = asyncio.create_task(lanes.take(33))
    await settle()
    assert not any(task.done() for task in (large, small, late))

    first.release()
    await settle()
    assert (large.done(), small.done(), late.done()) == (True, False, False)
    large.result().release()
    await settle()
    assert small.done()
    assert late.done()


async def test_whoever_leaves_the_queue_lets_the_next_one_through() -> None:
    lanes, make = make_lanes(total=sum(LARGEST))
    await lanes.take(60)
    large, small = asyncio.create_task(lanes.take(128)), asyncio.create_task(lanes.take(40))
    await settle()
    assert value(make, "waiting_requests", 128) == 2

    large.cancel()
    await settle()

    assert small.done()
    assert value(make, "waiting_requests", 128) == 0
    assert value(make, "in_flight", 128) == 100


async def test_room_granted_in_the_moment_of_leaving_is_given_back() -> None:
    lanes, make = make_lanes(total=sum(LARGEST))
    first = await lanes.take(128)
    waiting = asyncio.create_task(lanes.take(100))
    await settle()

    first.release()
    # Granted, but its task has not run since.
    waiting.cancel()
    await settle()

    assert waiting.cancelled()
    assert value(make, "in_flight", 128) == 0


async def test_a_room_cancelled_but_not_yet_gone_is_passed_over() -> None:
    lanes, make = make_lanes(total=sum(LARGEST))
    first = await lanes.take(128)
    left, stayed = asyncio.create_task(lanes.take(100)), asyncio.create_task(lanes.take(100))
    await settle()

    left.cancel()
    first.release()
    await settle()

    assert left.cancelled()
    assert stayed.done()
    assert value(make, "in_flight", 128) == 100
    assert value(make, "waiting_requests", 128) == 0


async def test_a_full_queue_refuses_with_the_time_that_it_will_take() -> None:
    clock = Clock()
    lanes, _ = make_lanes(clock, total=sum(LARGEST))
    for _ in range(2):
        with await lanes.take(100):
            clock.now += 10.0
    # Measured: 10 a second, and the lane owns 128.
    held = await lanes.take(100)
    waiting = [asyncio.create_task(lanes.take(100)) for _ in range(MAX_WAITING)]
    await settle()

    with pytest.raises(GatewayError) as caught:
        await lanes.take(50)

    assert caught.value.retry_after_seconds == pytest.approx((400 + 50 - 128) / 10)
    # The others' queue is their own.
    await lanes.take(32)
    for task in waiting:
        task.cancel()
    held.release()


async def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    clock = Clock()
    lanes, make = make_lanes(clock, total=sum(LARGEST), max_wait_seconds=15.0)
    with await lanes.take(128):
        clock.now += 12.8
    await lanes.take(128)
    waiting = asyncio.create_task(lanes.take(128))
    await settle()

    with pytest.raises(GatewayError) as caught:
        await lanes.take(40)

    assert caught.value.retry_after_seconds == pytest.approx(16.8)
    assert value(make, "waiting_requests", 128) == 1
    waiting.cancel()


async def test_a_wait_that_has_become_too_long_is_ended_and_leaves_no_trace() -> None:
    lanes, make = make_lanes(total=sum(LARGEST), max_wait_seconds=0.01)
    first = await lanes.take(128)

    with pytest.raises(GatewayError) as caught:
        await lanes.take(100)

    assert caught.value.retry_after_seconds is None
    assert value(make, "waiting_requests", 128) == 0
    first.release()
    assert value(make, "in_flight", 128) == 0


async def test_shrinking_lets_others_in() -> None:
    lanes, make = make_lanes(total=sum(LARGEST))
    first = await lanes.take(128)
    waiting = asyncio.create_task(lanes.take(100))
    await settle()

    first.shrink(28)
    await settle()

    assert waiting.done()
    first.release()
    first.release()
    assert value(make, "in_flight", 128) == 100


def test_a_total_less_than_what_the_lanes_own_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 168"):
        make_lanes(total=167)


class AnyOrder(RuleBasedStateMachine):
    """Real tasks in a real loop that runs only as far as a step says."""

    holders = Bundle("holders")

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.lanes, self.metrics = make_lanes()
        self.tasks: list[asyncio.Task[Room]] = []
        self.asked: dict[asyncio.Task[Room], int] = {}

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.compare()
            self.everybody_finishes_and_nobody_starves()
            self.loop.close()

    def has_room(self, task: asyncio.Task[Room]) -> bool:
        return task.done() and not task.cancelled() and task.exception() is None

    def lane_of(self, amount: int) -> int:
        return next(largest for largest in LARGEST if amount <= largest)

    @rule(target=holders, amounts=st.lists(st.sampled_from(AMOUNTS), min_size=1, max_size=6), steps=st.integers(0, 3))
    def ask(self, amounts: list[int], steps: int) -> Any:
        tasks = [self.loop.create_task(self.lanes.take(amount)) for amount in amounts]
        for task, amount in zip(tasks, amounts, strict=True):
            self.asked[task] = amount
        self.tasks += tasks
        self.run(steps)
        return multiple(*tasks)

    @rule(tasks=st.lists(consumes(holders), min_size=1, max_size=4))
    def finish_or_leave(self, tasks: list[asyncio.Task[Room]]) -> None:
        """At any point: not yet begun, in the queue, granted but not yet told, refused, or with its room."""
        for task in tasks:
            task.cancel()
            if self.has_room(task):
                task.result().release()

    @rule()
    def go_on(self) -> None:
        self.run(1)

    def run(self, steps: int) -> None:
        async def tick() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        self.loop.run_until_complete(tick())

    def everybody_finishes_and_nobody_starves(self) -> None:
        """Whatever waits in any lane gets its room once those before it in its own lane have finished."""
        self.loop.run_until_complete(settle())
        for _ in range(len(self.tasks)):
            for task in self.tasks:
                if self.has_room(task):
                    task.result().release()
            self.loop.run_until_complete(settle())
        assert all(task.done() for task in self.tasks)
        for lane in LARGEST:
            assert value(self.metrics, "in_flight", lane) == 0
            assert value(self.metrics, "waiting_requests", lane) == 0

    @invariant()
    def never_above_the_total(self) -> None:
        if hasattr(self, "lanes"):
            assert sum(value(self.metrics, "in_flight", lane) for lane in LARGEST) <= TOTAL

    @rule()
    def compare(self) -> None:
        self.loop.run_until_complete(settle())
        held = {lane: [0] for lane in LARGEST}
        waiting: dict[int, list[int]] = {lane: [] for lane in LARGEST}
        for task in self.tasks:
            lane = self.lane_of(self.asked[task])
            if not task.done():
                waiting[lane].append(self.asked[task])
            elif self.has_room(task):
                assert not waiting[lane], "a later one of the same lane was let through first"
                held[lane].append(task.result().amount)
        excess = sum(max(0, sum(held[lane]) - lane) for lane in LARGEST)
        for lane in LARGEST:
            used = sum(held[lane])
            assert value(self.metrics, "in_flight", lane) == used
            assert value(self.metrics, "waiting_requests", lane) == len(waiting[lane]) <= MAX_WAITING
            if waiting[lane]:
                shared = TOTAL - sum(LARGEST) - excess + max(0, used - lane)
                assert max(0, used + waiting[lane][0] - lane) > shared, "the first in line would fit"


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)
test_any_order = AnyOrder.TestCase
