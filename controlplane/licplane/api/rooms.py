# SPDX-License-Identifier: Apache-2.0
"""Room for what is held in memory: who finds none waits for his turn, and reads nothing more."""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """So much, on one event loop. Served in the order of asking."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def left(self) -> int:
        """What is free."""
        return self._left

    async def take(self, amount: int) -> int:
        """Wait for room. What was taken, to be given back: never more than there is at all."""
        amount = min(amount, self._size)
        if not self._waiting and amount <= self._left:
            self._left -= amount
            return amount
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._left += amount
            else:
                turn.cancel()
            self._serve()
            raise
        return amount

    def give(self, amount: int) -> None:
        """It is free again."""
        self._left += amount
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            amount, turn = self._waiting[0]
            if not turn.done():
                if amount > self._left:
                    return
                self._left -= amount
                turn.set_result(None)
            self._waiting.popleft()
