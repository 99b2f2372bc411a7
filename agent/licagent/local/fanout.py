# SPDX-License-Identifier: Apache-2.0
"""One source of items, many subscribers, none of which can slow the source or grow memory."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Item = TypeVar("Item")


class Missed:
    """Stands in a subscription for `count` items its reader was too slow for."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


class Fanout(Generic[Item]):
    """Publish never waits. A slow subscriber loses its oldest items and is told how many."""

    def __init__(self, capacity: int = 1024) -> None:
        """`capacity`: items kept for each subscriber."""
        self._capacity = capacity
        self._subscriptions: set[_Subscription[Item]] = set()

    def publish(self, item: Item) -> None:
        """Give `item` to every subscriber. From the event loop's thread."""
        for subscription in self._subscriptions:
            subscription.put(item)

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return len(self._subscriptions)

    async def subscribe(self) -> AsyncIterator[Item | Missed]:
        """Items from now on, without end. Close the generator to unsubscribe."""
        subscription = _Subscription[Item](self._capacity)
        self._subscriptions.add(subscription)
        try:
            while True:
                await subscription.ready.wait()
                for item in subscription.take():
                    yield item
        finally:
            self._subscriptions.discard(subscription)


class _Subscription(Generic[Item]):
    def __init__(self, capacity: int) -> None:
        self._items: deque[Item] = deque(maxlen=capacity)
        self._missed = 0
        self.ready = asyncio.Event()

    def put(self, item: Item) -> None:
        if len(self._items) == self._items.maxlen:
            self._missed += 1
        self._items.append(item)
        self.ready.set()

    def take(self) -> list[Item | Missed]:
        taken: list[Item | Missed] = list(self._items)
        if self._missed:
            taken.insert(0, Missed(self._missed))
        self._items.clear()
        self._missed = 0
        self.ready.clear()
        return taken
