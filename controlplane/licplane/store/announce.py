# SPDX-License-Identifier: Apache-2.0
"""How processes learn that the database changed: a poke at once, polling behind it.

SQLite: a datagram to each UNIX socket in STATE/notify/. PostgreSQL: NOTIFY on one channel, which
the server coalesces within a transaction. A lost poke costs one polling interval, never a change.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Subscription(Protocol):
    """One listener's bell. It rings when the database may have changed; rings coalesce."""

    async def wait(self) -> None:
        """Until the database may have changed since the last wait; read Head to see what."""

    async def close(self) -> None:
        """Stop listening and remove the socket or connection. Twice is once."""


class Announcer(Protocol):
    """Pokes and listens for one store."""

    def announce(self) -> None:
        """Poke all listeners, in this process or another. Never raises, never blocks for long.

        Store calls it after each commit that moved Head.revision or Head.fleet_revision.
        """

    async def listen(self, loop: asyncio.AbstractEventLoop | None = None) -> Subscription:
        """A bell for the running loop. Rings at least once for each change after this returns."""
