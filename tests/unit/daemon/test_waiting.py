# SPDX-License-Identifier: Apache-2.0
"""The event loop rests while data waits to be taken."""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Iterator

import pytest

from licagent.daemon.main import readable


class _Counting(selectors.EpollSelector):
    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        return super().select(timeout)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_data_that_nobody_takes_does_not_turn_the_loop(pipe: tuple[int, int]) -> None:
    selector = _Counting()
    loop = asyncio.SelectorEventLoop(selector)
    os.write(pipe[1], b"x")

    async def wait_a_few_times() -> None:
        for _ in range(5):
            await readable(pipe[0])
            await asyncio.sleep(0.02)

    try:
        loop.run_until_complete(wait_a_few_times())
    finally:
        loop.close()
    assert selector.turns < 60  # thousands if it is watched in the pauses too


def test_waits_until_there_is_data(pipe: tuple[int, int]) -> None:
    async def waits() -> bool:
        waiting = asyncio.ensure_future(readable(pipe[0]))
        await asyncio.sleep(0.01)
        early = waiting.done()
        os.write(pipe[1], b"x")
        await asyncio.wait_for(waiting, 10)
        return early

    assert not asyncio.run(waits())


def test_nothing_is_watched_after_a_wait_was_given_up(pipe: tuple[int, int]) -> None:
    async def gives_up() -> bool:
        waiting = asyncio.ensure_future(readable(pipe[0]))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return asyncio.get_running_loop().remove_reader(pipe[0])

    assert not asyncio.run(gives_up())
