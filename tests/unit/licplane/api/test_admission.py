# SPDX-License-Identifier: Apache-2.0
"""Token bucket, retry times and slots, with a clock of their own."""

from __future__ import annotations

import asyncio

import pytest

from licplane.api.admission import Pace, Slots, TokenBucket
from licplane.api.settings import Admission


class Clock:
    """Time that only tests move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_lets_its_burst_through_and_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(2.0, 3, clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.now_s += 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    clock.now_s += 3600
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]  # never more at once
    bucket.give_back()
    assert bucket.take()


def test_a_crowd_is_spread_over_the_time_that_it_takes() -> None:
    clock = Clock()
    settings = Admission(streams_a_second=100, retry_after_min_ms=500, retry_after_max_ms=10_000)
    pace = Pace(settings, clock)
    times_ms = [pace.retry_after_ms() for _ in range(1000)]
    assert all(500 <= one <= 10_000 for one in times_ms)
    assert max(times_ms) > 8_000  # the last ones wait for those before them
    assert sum(one < 1_500 for one in times_ms) < 300
    clock.now_s += 60
    assert pace.retry_after_ms() <= 750  # who comes alone comes back soon


async def test_slots_are_given_in_the_order_of_those_who_wait() -> None:
    slots = Slots(1)
    await slots.take()
    order: list[int] = []

    async def one(number: int) -> None:
        await slots.take()
        order.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert (slots.taken, slots.waiting) == (1, 3)
    assert slots.is_full(3)
    assert not slots.is_full(4)
    for _ in range(3):
        slots.give_back()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
    slots.give_back()
    assert slots.taken == 0


async def test_a_slot_is_not_lost_with_one_who_gave_up() -> None:
    slots = Slots(1)
    await slots.take()
    gone, gone_late, stays = (asyncio.create_task(slots.take()) for _ in range(3))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    slots.give_back()  # to gone_late, which is cancelled before it hears of it
    gone_late.cancel()
    await asyncio.wait_for(stays, 20)
    for task in (gone, gone_late):
        with pytest.raises(asyncio.CancelledError):
            await task
    slots.give_back()
    assert slots.taken == 0
