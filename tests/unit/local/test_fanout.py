# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

from licagent.local.fanout import Fanout, Missed


async def take(subscription, count):
    return [await asyncio.wait_for(anext(subscription), 5) for _ in range(count)]


async def listening(fanout):
    """A subscription that is in place, and the task of its first item."""
    subscription = fanout.subscribe()
    first = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    return subscription, first


async def test_everybody_gets_everything_in_order():
    fanout = Fanout[int]()
    one, first_of_one = await listening(fanout)
    two, first_of_two = await listening(fanout)
    for number in range(3):
        fanout.publish(number)
    assert [await first_of_one, *await take(one, 2)] == [0, 1, 2]
    assert [await first_of_two, *await take(two, 2)] == [0, 1, 2]
    await one.aclose()
    await two.aclose()


async def test_the_slow_lose_the_oldest_and_are_told_how_many():
    fanout = Fanout[int](capacity=10)
    subscription, first = await listening(fanout)
    for number in range(25):
        fanout.publish(number)
    missed = await first
    assert isinstance(missed, Missed)
    assert missed.count == 15
    assert await take(subscription, 10) == list(range(15, 25))
    await subscription.aclose()


async def test_whoever_leaves_is_forgotten():
    fanout = Fanout[int]()
    subscription, first = await listening(fanout)
    fanout.publish(1)
    await first
    assert fanout.subscribers == 1
    await subscription.aclose()
    assert fanout.subscribers == 0
