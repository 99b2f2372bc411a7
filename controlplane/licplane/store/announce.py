# SPDX-License-Identifier: Apache-2.0
"""How processes learn that the database changed: a poke at once, polling behind it.

SQLite: a datagram to each UNIX socket in STATE/notify/. PostgreSQL: NOTIFY on one channel, which
the server coalesces within a transaction. A lost poke costs one polling interval, never a change.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from sqlalchemy import Connection


class Subscription(Protocol):
    """One listener's bell. It rings when the database may have changed; rings coalesce."""

    async def wait(self) -> None:
        """Until the database may have changed since the last wait; read Head to see what."""

    async def close(self) -> None:
        """Stop listening and remove the socket or connection. Twice is once."""


class Announcer(Protocol):
    """Pokes and listens for one store."""

    def before_commit(self, connection: Connection) -> None:
        """Make the poke part of a transaction, where the database can."""

    def announce(self) -> None:
        """Poke all listeners, in this process or another. Never raises, never blocks for long.

        Store does so by itself for each commit that moved Head.revision or Head.fleet_revision.
        """

    async def listen(self) -> Subscription:
        """A bell for the running loop. Rings for each change that is made after this returns."""


class Bell:
    """What a listener waits on."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake the listener, now or when it next waits. Only in the loop's thread."""
        self._event.set()

    async def wait(self) -> None:
        """Until it has rung since the last wait."""
        await self._event.wait()
        self._event.clear()
