# SPDX-License-Identifier: Apache-2.0
"""One source of items, many subscribers, none of which can slow the source or grow memory."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Self, TypeVar
from weakref import WeakSet

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
        # Weak: who drops a subscription without closing it has left all the same.
        self._subscriptions: WeakSet[Subscription[Item]] = WeakSet()

    def publish(self, item: Item) -> None:
        """Give `item` to every subscriber. From the event loop's thread."""
        for subscription in self._subscriptions:
            subscription.put(item)

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return len(self._subscriptions)

    def subscribe(self) -> Subscription[Item]:
        """Items from this call on, without end.

        To show the past and then go on without a gap: subscribe, read the past, then iterate.
        """
        subscription = Subscription[Item](self._capacity, self._subscriptions)
        self._subscriptions.add(subscription)
        return subscription


class Subscription(Generic[Item]):
    """An asynchronous iterator over what is published."""

    def __init__(self, capacity: int, others: WeakSet[Subscription[Item]]) -> None:
        self._items: deque[Item] = deque(maxlen=capacity)
        self._missed = 0
        self._ready = asyncio.Event()
        self._others = others

    def put(self, item: Item) -> None:
        """Keep `item`, in place of the oldest if there is no room."""
        if len(self._items) == self._items.maxlen:
            self._missed += 1
        self._items.append(item)
        self._ready.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item | Missed:
        await self._ready.wait()
        if self._missed:
            missed, self._missed = Missed(self._missed), 0
            return missed
        item = self._items.popleft()
        if not self._items:
            self._ready.clear()
        return item

    async def aclose(self) -> None:
        """Take no more."""
        self._others.discard(self)
