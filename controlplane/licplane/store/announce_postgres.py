# SPDX-License-Identifier: Apache-2.0
"""Announcements of a PostgreSQL database: NOTIFY on one channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from licplane.store.announce import Bell, Subscription
from licplane.store.history import History
from licplane.store.postgres_answers import connect_words, cut_after
from licplane.store.postgres_servers import history_of_async, is_left_behind

POLL_S: Final = 1.0
CHANNEL: Final = "licplane_changes"
_RETRY_S: Final = 1.0
_HEAD: Final = "SELECT revision, fleet_revision FROM head"

_log = logging.getLogger(__name__)
_Async = psycopg.AsyncConnection[TupleRow]


class PostgresAnnouncer:
    """For the database of `engine`."""

    def __init__(self, engine: Engine, *, poll_s: float = POLL_S) -> None:
        self._engine = engine
        self._poll_s = poll_s

    def before_commit(self, connection: Connection) -> None:
        """The server sends it when, and only if, the transaction commits."""
        connection.execute(text(f"NOTIFY {CHANNEL}"))

    def announce(self) -> None:
        """A poke by itself."""
        with contextlib.suppress(Exception), self._engine.begin() as connection:
            self.before_commit(connection)

    async def listen(self) -> Subscription:
        """A bell that notifications ring, and the polling of the head row.

        Raises psycopg.OperationalError when the database does not answer now; if it goes away
        later, the subscription comes back by itself, and rings then.
        """
        watch = _Watch(self._where, self._is_left_behind)
        await watch.connect()
        return _PostgresSubscription(watch, self._poll_s)

    def _is_left_behind(self, history: History) -> bool:
        return is_left_behind(self._engine, history)

    def _where(self) -> dict[str, Any]:
        """How to connect to the server that the engine is connected to now, of several."""
        url = self._engine.url
        _, arguments = self._engine.dialect.create_connect_args(url)
        arguments = {**connect_words(url), **arguments}
        if "," not in str(arguments.get("host", "")):
            return arguments
        try:
            with self._engine.connect() as connection:
                raw = connection.connection.driver_connection
                assert isinstance(raw, psycopg.Connection)  # noqa: S101 -- there is no other driver
                return {**arguments, "host": raw.info.host, "port": raw.info.port}
        except SQLAlchemyError as error:
            raise psycopg.OperationalError(str(error)) from error


class _Watch:
    """The connection that listens."""

    def __init__(
        self, where: Callable[[], dict[str, Any]], is_left_behind: Callable[[History], bool]
    ) -> None:
        self._where = where
        self._is_left_behind = is_left_behind
        self._connection: _Async | None = None
        self._history: History = None
        self._head: TupleRow | None = None

    async def connect(self) -> None:
        """Connect and listen. What is there from now on is news."""
        arguments = await asyncio.to_thread(self._where)
        connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=True)
        self._connection = connection
        with cut_after(connection):
            self._history = await history_of_async(connection)
            self._check()
            await connection.execute(f"LISTEN {CHANNEL}")
            self._head = await self._read(connection)

    async def rung(self, wait_s: float) -> bool:
        """Whether something came within `wait_s`, or the head moved."""
        if self._connection is None:
            await self.connect()
            return True
        self._check()
        notified = False
        async for _ in self._connection.notifies(timeout=wait_s, stop_after=1):
            notified = True
        with cut_after(self._connection):
            head = await self._read(self._connection)
        moved, self._head = head != self._head, head
        return notified or moved

    def _check(self) -> None:
        """It may live on, and nobody tells it anything any more."""
        if self._is_left_behind(self._history):
            raise psycopg.OperationalError("a standby was promoted since")

    async def _read(self, connection: _Async) -> TupleRow | None:
        cursor = await connection.execute(_HEAD)
        try:
            return await cursor.fetchone()
        finally:
            await cursor.close()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class _PostgresSubscription:
    def __init__(self, watch: _Watch, poll_s: float) -> None:
        self._watch = watch
        self._bell = Bell()
        self._task = asyncio.get_running_loop().create_task(self._listen(poll_s))

    async def _listen(self, poll_s: float) -> None:
        while True:
            try:
                if await self._watch.rung(poll_s):
                    self._bell.ring()
            except (psycopg.Error, OSError) as error:
                _log.warning("The database does not answer; trying again: %s", error)
                await self._watch.close()
                await asyncio.sleep(_RETRY_S)

    async def wait(self) -> None:
        """Until the database may have changed since the last wait."""
        await self._bell.wait()

    async def close(self) -> None:
        """Stop listening and close the connection."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._watch.close()
