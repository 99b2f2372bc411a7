# SPDX-License-Identifier: Apache-2.0
"""Connections to SQLite and PostgreSQL, with transactions that mean the same on both."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError

from licplane.errors import ExitCode, PlaneError
from licplane.store.folder import PRIVATE_MODE, StateFolder
from licplane.store.postgres_urls import several_hosts, writable

LOCK_WAIT_S: Final = 10.0
"""How long a writer waits for another one, and anybody for a connection."""
DATABASE_NAME: Final = "licplane.db"

Mode = Literal["read", "write"]


def parse_url(text: str) -> URL:
    """The URL of a database, or of the one in a state folder that `text` is the path of.

    Raises PlaneError USAGE for what is neither SQLite in a file nor PostgreSQL.
    """
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).absolute() / DATABASE_NAME))
    try:
        url = several_hosts(text)
    except (ArgumentError, ValueError) as error:
        # Not from it: its message may hold the password.
        raise _bad_url("It is no URL") from error.__cause__
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        return writable(url.set(drivername="postgresql+psycopg"))
    if url.drivername != "sqlite":
        raise _bad_url(f"{url.drivername} is not supported")
    if not url.database or url.database == ":memory:" or url.query:
        raise _bad_url("SQLite needs a file here, and no options")
    return url.set(database=str(Path(url.database).absolute()))


def _bad_url(why: str) -> PlaneError:
    return PlaneError(
        ExitCode.USAGE,
        f"The database's URL is refused: {why}",
        "Use a state folder, or postgresql://USER@HOST/DATABASE",
    )


def make_engine(url: URL, *, pool_size: int, lock_wait_s: float = LOCK_WAIT_S) -> Engine:
    """An engine for `url`; it connects when it is first used."""
    if url.drivername == "sqlite":
        return _sqlite(url, pool_size, lock_wait_s)
    return _postgres(url, pool_size, lock_wait_s)


def _postgres(url: URL, pool_size: int, lock_wait_s: float) -> Engine:
    # Its driver is a seventh of what a command imports; with SQLite nobody needs it.
    from licplane.store.postgres_answers import connect_words, ping
    from licplane.store.postgres_servers import follow

    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,  # a database that was restarted costs one round trip, not an error
        pool_timeout=lock_wait_s,
        connect_args={
            **connect_words(url),
            "options": f"-c lock_timeout={max(1, int(lock_wait_s * 1000))} -c timezone=UTC",
        },
    )
    engine.dialect.do_ping = ping  # type: ignore[method-assign, assignment]  # theirs has no end
    follow(engine)
    return engine


class _BitOr:
    """SQL's bit_or: the bits that are set in any of the rows."""

    def __init__(self) -> None:
        self._bits = 0

    def step(self, value: int | None) -> None:
        """One row."""
        self._bits |= value or 0

    def finalize(self) -> int:
        """All of them."""
        return self._bits


def _sqlite(url: URL, pool_size: int, lock_wait_s: float) -> Engine:
    assert url.database is not None  # noqa: S101 -- parse_url saw to it
    path = Path(url.database)
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=lock_wait_s,
        connect_args={"timeout": lock_wait_s, "check_same_thread": False},
    )

    @event.listens_for(engine, "do_connect")
    def _private(*unused: Any) -> None:
        # SQLite gives its journal the mode of the database, and the database that of the umask.
        del unused
        StateFolder(path.parent).require()
        # Never a file that is there: close(2) would take away the locks of all connections that
        # this process has to it (sqlite.org/howtocorrupt.html, 2.2), and the next process to
        # leave would delete the journal that this one writes to.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, flags, PRIVATE_MODE))

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, record: object) -> None:
        del record
        connection.isolation_level = None  # BEGIN is ours: see _begin
        for pragma in (
            "journal_mode=WAL",  # readers go on while one writes
            "synchronous=FULL",  # what was answered is on disk
            "foreign_keys=ON",
            "trusted_schema=OFF",
            "journal_size_limit=67108864",
        ):
            connection.execute(f"PRAGMA {pragma}").close()
        connection.create_aggregate("bit_or", 1, _BitOr)  # PostgreSQL has it

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE takes the write lock now. A transaction that reads first and asks for the lock
        # later would be refused at once if somebody else had written in between.
        reads = connection.get_execution_options().get("licplane_mode") == "read"
        connection.exec_driver_sql(f"PRAGMA query_only={'ON' if reads else 'OFF'}")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def options(engine: Engine, mode: Mode) -> dict[str, Any]:
    """Execution options of a connection for this use."""
    if engine.dialect.name == "sqlite":
        return {"licplane_mode": mode}
    if mode == "read":
        return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    return {"isolation_level": "READ COMMITTED", "postgresql_readonly": False}
