# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

from licagent.local.fanout import Fanout, Missed


async def take(subscription, count):
    return [await asyncio.wait_for(anext(subscription), 5) for _ in range(count)]


async def test_everybody_gets_everything_in_order():
    fanout = Fanout[int]()
    one, two = fanout.subscribe(), fanout.subscribe()
    for number in range(3):
        fanout.publish(number)
    assert await take(one, 3) == [0, 1, 2]
    fanout.publish(3)
    assert await take(two, 4) == [0, 1, 2, 3]
    assert await take(one, 1) == [3]


async def test_a_subscription_counts_from_its_making_not_its_first_reading():
    fanout = Fanout[int]()
    subscription = fanout.subscribe()
    fanout.publish(1)
    async for item in subscription:
        assert item == 1
        break


async def test_a_reader_waits_for_what_is_not_there_yet():
    fanout = Fanout[int]()
    subscription = fanout.subscribe()
    waiting = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    assert not waiting.done()
    fanout.publish(7)
    assert await asyncio.wait_for(waiting, 5) == 7


async def test_the_slow_lose_the_oldest_and_are_told_how_many():
    fanout = Fanout[int](capacity=10)
    subscription = fanout.subscribe()
    for number in range(25):
        fanout.publish(number)
    missed, *rest = await take(subscription, 11)
    assert isinstance(missed, Missed)
    assert missed.count == 15
    assert rest == list(range(15, 25))


async def test_whoever_leaves_is_forgotten():
    fanout = Fanout[int]()
    closed, dropped = fanout.subscribe(), fanout.subscribe()
    assert fanout.subscribers == 2
    await closed.aclose()
    assert fanout.subscribers == 1
    del dropped
    assert fanout.subscribers == 0
