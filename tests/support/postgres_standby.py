# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL primary with a real streaming standby, to fail over to.

Both are servers of the block's own (`running_pair`); see tests.support.postgres for one server.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

# It is a plugin to other tests: as such it must be seen before it is imported.
pytest.register_assert_rewrite("tests.support.postgres")

from tests.support.postgres import (  # noqa: E402
    Postgres,
    _run,
    listen,
    running_postgres,
    started,
)

_WAIT_S = 60.0


@dataclass(slots=True)
class Pair:
    """A primary and its standby; after `promote` the second one is the primary."""

    primary: Postgres
    standby: Postgres
    is_promoted: bool = False

    def url(self, database: str, *, more: str = "") -> str:
        """Of a database, in libpq's form with both servers."""
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://postgres@{hosts}/{database}{more}"

    def be_synchronous(self) -> None:
        """A commit waits until the standby has it on its disk."""
        _set(self.primary, "synchronous_standby_names", "*")
        _until(lambda: _ask(self.primary, "SELECT sync_state FROM pg_stat_replication") == "sync")

    def be_asynchronous(self) -> None:
        """A commit waits for nobody."""
        _set(self.primary, "synchronous_standby_names", "")

    def refuse_changes(self) -> None:
        """New connections to the primary are told that it is read-only; older ones go on."""
        _set(self.primary, "default_transaction_read_only", "on")
        _until(lambda: _ask(self.primary, "SHOW default_transaction_read_only") == "on")

    def part(self) -> None:
        """Cut the standby off: what is committed from now on it never sees."""
        _set(self.standby, "primary_conninfo", "")
        _until(lambda: _ask(self.standby, "SELECT count(*) FROM pg_stat_wal_receiver") == 0)
        _until(lambda: _ask(self.primary, "SELECT count(*) FROM pg_stat_replication") == 0)

    def caught_up(self) -> None:
        """Wait until the standby has replayed all that is committed now."""
        there = _ask(self.primary, "SELECT pg_current_wal_lsn()::text")
        query = f"SELECT pg_last_wal_replay_lsn() >= '{there}'::pg_lsn"
        _until(lambda: _ask(self.standby, query))

    def promote(self) -> None:
        """Make the standby a primary; it takes changes when this returns."""
        self.standby._control("promote")
        self.is_promoted = True

    def fail_over(self) -> None:
        """The primary dies as by a crash, and the standby takes its place."""
        self.primary.stop()
        self.promote()

    def renew(self) -> None:
        """After a promotion: the old primary becomes a standby of the new one, from a new copy.

        They change names with it. Much faster than another pair.
        """
        with contextlib.suppress(RuntimeError):  # most often it does not run
            self.primary.stop()
        shutil.rmtree(self.primary.folder / "data")
        self.primary, self.standby = self.standby, self.primary
        self.is_promoted = False
        self._follow()

    def _follow(self) -> None:
        _copy(self.primary, self.standby.folder)
        listen(self.standby)
        self.standby.start()
        self._is_followed()

    def _is_followed(self) -> None:
        query = "SELECT state FROM pg_stat_replication"
        _until(lambda: _ask(self.primary, query) == "streaming")


@contextlib.contextmanager
def running_pair() -> Iterator[Pair]:
    """Both servers, the standby streaming; they live as long as the block."""
    with running_postgres() as primary:
        folder = Path(tempfile.mkdtemp(prefix="licplane-standby-"))
        try:
            if os.geteuid() == 0:
                user = pwd.getpwnam("postgres")
                os.chown(folder, user.pw_uid, user.pw_gid)
            _copy(primary, folder)
            standby = started(folder, primary.programs)
            pair = Pair(primary, standby)
            try:
                pair._is_followed()
                yield pair
            finally:
                with contextlib.suppress(RuntimeError):
                    standby.stop()
        finally:
            # A test may have stopped the primary; running_postgres() stops what runs.
            with contextlib.suppress(RuntimeError):
                primary.start()
            shutil.rmtree(folder, ignore_errors=True)


def _copy(primary: Postgres, folder: Path) -> None:
    data = folder / "data"
    words = [primary.programs / "pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast"]
    where = ["-h", "127.0.0.1", "-p", primary.port, "-U", "postgres", "--no-sync"]
    done = _run([*words, *where], folder)
    if done.returncode:
        raise RuntimeError(f"pg_basebackup: {done.stdout}")
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"unix_socket_directories = '{folder}'\n")


def _set(server: Postgres, name: str, value: str) -> None:
    server.run(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    server.run(sql.SQL("SELECT pg_reload_conf()"))


def _ask(server: Postgres, query: str) -> Any:
    with psycopg.connect(
        f"postgresql://postgres@127.0.0.1:{server.port}/postgres", autocommit=True
    ) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def _until(condition: Any) -> None:
    end_s = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > end_s:
            raise RuntimeError("the servers do not come to where they should")
        time.sleep(0.05)
