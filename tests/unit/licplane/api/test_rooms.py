# SPDX-License-Identifier: Apache-2.0
"""Room in memory: who finds none waits, in order, and whoever goes away leaves nothing taken."""

from __future__ import annotations

import asyncio
import contextlib
import random

from licplane.api.rooms import Room


def test_served_in_order_and_never_beyond() -> None:
    async def run() -> list[int]:
        room, order = Room(10), []

        async def one(number: int, amount: int) -> None:
            taken = await room.take(amount)
            order.append(number)
            assert room.left >= 0
            await asyncio.sleep(0)
            room.give(taken)

        wanted = [6, 6, 1, 1, 25, 1]  # what is larger than all waits for all
        await asyncio.gather(*(one(number, amount) for number, amount in enumerate(wanted)))
        assert room.left == 10
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4, 5]


def test_who_is_cancelled_leaves_nothing_taken() -> None:
    async def run(seed: int) -> None:
        chance, room = random.Random(seed), Room(10)

        async def one() -> None:
            taken = await room.take(chance.randint(0, 12))
            try:
                await asyncio.sleep(0)
            finally:
                room.give(taken)

        tasks = [asyncio.ensure_future(one()) for _ in range(50)]
        for _ in range(30):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 5)
        assert room.left == 10

    for seed in range(20):
        asyncio.run(run(seed))
