# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL behind several addresses: which server counts, and whether it is still the same one.

Each promotion of a standby begins a new timeline, with a higher number than all before it. A
primary that was left behind and comes back still writes its old one. libpq's own choice
(`target_session_attrs=read-write`) cannot tell the two apart: both let themselves be written to.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

from licplane.store.history import HISTORY, History, Lineage, Unnamed, history_of
from licplane.store.postgres_answers import Unanswered, answer

_TIMELINE: Final = (
    b"SELECT (SELECT system_identifier FROM pg_control_system()),"
    b" CASE WHEN pg_is_in_recovery() THEN NULL"
    b" ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"
)
_BEGAN: Final = b"SELECT extract(epoch FROM pg_postmaster_start_time())::text"
_UNKNOWN: Final = frozenset({"42883", "0A000"})
"""SQLSTATE undefined_function, feature_not_supported."""
_HIDDEN: Final = _UNKNOWN | {"42501"}
"""And insufficient_privilege: the server does not tell this, today or tomorrow. Any other error
says nothing of the server."""

_log = logging.getLogger(__name__)
_Connection = psycopg.Connection[Any]
_Connect = Callable[..., _Connection]
_followed: Final[weakref.WeakKeyDictionary[Engine, Servers]] = weakref.WeakKeyDictionary()


def follow(engine: Engine) -> None:
    """Have `engine` connect to the newest timeline that it can reach, and never to one behind
    what it has seen."""
    servers = Servers(psycopg.connect)
    _followed[engine] = servers

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, record: Any, _words: Any, arguments: Any) -> _Connection:
        connection, history = servers.connect(arguments)
        if record is not None:
            record.info[HISTORY] = history
        return connection

    @event.listens_for(engine, "checkout")
    def _check(_connection: Any, record: Any, _proxy: Any) -> None:
        if servers.has_left(history_of(record.info)):
            raise DisconnectionError("a standby was promoted since")  # the pool makes another one


def is_left_behind(engine: Engine, history: History) -> bool:
    """Whether `engine` has seen that the database goes on without the server of this history."""
    servers = _followed.get(engine)
    return servers is not None and servers.has_left(history)


class Servers:
    """Connects to one of several servers. Threads may share it."""

    def __init__(self, connect: _Connect) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self.newest: Lineage | None = None
        """Seen by this process."""

    def has_left(self, history: History) -> bool:
        """Whether a newer one was seen."""
        return isinstance(history, Lineage) and history.is_behind(self.newest)

    def connect(self, arguments: dict[str, Any]) -> tuple[_Connection, History]:
        """A connection, and what it is to.

        The first one looks at every host, for only so a primary that was left behind is told from
        the one that counts. Later ones take libpq's choice while that is not behind. Raises
        psycopg.OperationalError.
        """
        hosts = _each(arguments)
        if self.newest is not None or len(hosts) == 1:
            connection, history = self._asked(arguments)
            if self._takes(history):
                return connection, history
            connection.close()
            if len(hosts) == 1:
                raise self._behind()
        connection, history = self._newest_of(hosts)
        if self._takes(history):
            return connection, history
        connection.close()
        raise self._behind()

    def _newest_of(self, hosts: list[dict[str, Any]]) -> tuple[_Connection, History]:
        found: tuple[_Connection, History] | None = None
        errors = []
        for arguments in hosts:
            try:
                connection, history = self._asked(arguments)
            except psycopg.OperationalError as error:
                errors.append(str(error).strip())
                continue
            if found is None:
                found = connection, history
            elif (
                isinstance(history, Lineage)
                and isinstance(found[1], Lineage)
                and found[1].is_behind(history)
            ):
                found[0].close()
                found = connection, history
            else:
                connection.close()
        if found is None:
            raise psycopg.OperationalError("; ".join(errors))
        return found

    def _asked(self, arguments: dict[str, Any]) -> tuple[_Connection, History]:
        """A connection to whoever libpq chooses, and what it is to."""
        connection = self._connect(**arguments)
        try:
            return connection, _ask(connection)
        except BaseException:
            connection.close()
            raise

    def _takes(self, history: History) -> bool:
        if not isinstance(history, Lineage):
            return True
        with self._lock:
            if history.is_behind(self.newest):
                return False
            if self.newest is not None and history != self.newest:
                _log.warning(
                    "the database goes on at another server: timeline %d instead of %d",
                    history.timeline,
                    self.newest.timeline,
                )
            self.newest = history
        return True

    def _behind(self) -> psycopg.OperationalError:
        seen = self.newest.timeline if self.newest else 0
        return psycopg.OperationalError(
            f"only a primary that was left behind takes changes (timeline {seen} was seen before)"
        )


def _each(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """What connects to each host alone; the same as it is where they are named another way."""
    names = str(arguments.get("host") or "").split(",")
    ports = str(arguments.get("port") or "").split(",")
    if len(names) == 1 or "hostaddr" in arguments:
        return [arguments]
    if len(ports) == 1:
        ports *= len(names)
    return [
        {**arguments, "host": name, "port": port or None}
        for name, port in zip(names, ports, strict=True)
    ]


def _ask(connection: _Connection) -> History:
    """What a new connection is to. Raises psycopg.OperationalError where that was not answered:
    such a server is not taken for one that does not tell."""
    try:
        rows = answer(connection, _TIMELINE)
        system, timeline = rows.get_value(0, 0), rows.get_value(0, 1)
    except Unanswered as error:
        if error.code not in _HIDDEN:
            raise
        system = timeline = None
    if system is not None and timeline is not None:
        return Lineage(int(system), int(timeline, 16))
    try:
        began = answer(connection, _BEGAN).get_value(0, 0)
    except Unanswered as error:
        if error.code in _UNKNOWN:
            return None
        raise
    return Unnamed((began or b"").decode())


async def history_of_async(connection: psycopg.AsyncConnection[Any]) -> History:
    """As for other connections, on one that listens; None where the timeline is hidden.

    Raises psycopg.Error.
    """
    try:
        cursor = await connection.execute(_TIMELINE)
        row = await cursor.fetchone()
    except psycopg.Error as error:
        if error.sqlstate not in _HIDDEN:
            raise
        return None
    return Lineage(int(row[0]), int(row[1], 16)) if row and row[0] and row[1] else None
