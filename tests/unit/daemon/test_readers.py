# SPDX-License-Identifier: Apache-2.0
"""The threads of those who only ask."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from licagent.daemon.readers import Readers

NAME = "readers of a test"


def running() -> int:
    return sum(each.name == NAME for each in threading.enumerate())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what threads do sets no event of the loop
            await asyncio.sleep(0.001)


async def test_one_after_the_other_and_then_no_thread_is_left() -> None:
    readers = Readers(NAME)
    seen: list[int] = []
    go = threading.Event()
    first = asyncio.ensure_future(readers(lambda: go.wait(20)))
    others = [asyncio.ensure_future(readers(lambda n=n: seen.append(n))) for n in range(20)]
    await until(lambda: running() == 1)
    assert seen == []
    go.set()
    assert await first
    await asyncio.gather(*others)
    assert seen == list(range(20))
    await until(lambda: running() == 0)
    assert await readers(lambda: "again") == "again"


async def test_no_more_threads_than_allowed() -> None:
    readers = Readers(NAME, 3)
    together = threading.Barrier(3)
    await asyncio.gather(*(readers(lambda: together.wait(20)) for _ in range(9)))
    go = threading.Event()
    waiting = [asyncio.ensure_future(readers(lambda: go.wait(20))) for _ in range(9)]
    await until(lambda: running() == 3)
    go.set()
    assert all(await asyncio.gather(*waiting))


async def test_who_gives_up_before_his_turn_costs_nothing() -> None:
    readers = Readers(NAME)
    go = threading.Event()
    first = asyncio.ensure_future(readers(lambda: go.wait(20)))
    seen: list[str] = []
    gone = asyncio.ensure_future(readers(lambda: seen.append("gone")))
    last = asyncio.ensure_future(readers(lambda: seen.append("last")))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    go.set()
    await asyncio.gather(first, last)
    assert seen == ["last"]


async def test_an_error_is_raised_where_it_was_asked_for_and_ends_nothing() -> None:
    readers = Readers(NAME)

    def fails() -> None:
        raise LookupError("not here")

    with pytest.raises(LookupError, match="not here"):
        await readers(fails)
    assert await readers(lambda: 1) == 1
