# SPDX-License-Identifier: Apache-2.0
"""The control plane's database: SQLite in the state folder, or PostgreSQL by URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from sqlalchemy import URL, Connection, Engine

from licplane.errors import ExitCode, PlaneError
from licplane.store import upgrading
from licplane.store.announce import Announcer
from licplane.store.announce_sqlite import SqliteAnnouncer
from licplane.store.engine import LOCK_WAIT_S, Mode, make_engine, options, parse_url
from licplane.store.faults import in_our_words
from licplane.store.folder import StateFolder
from licplane.store.folder_import import FolderImport
from licplane.store.reader import Reader
from licplane.store.recorder import Recorder
from licplane.store.transaction import Transaction

__all__ = ["Reader", "Recorder", "Store", "Transaction"]


class Store:
    """One database. Threads may share it; processes each open their own (never across a fork)."""

    def __init__(self, url: URL, engine: Engine, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._engine: Final = engine
        self._lock_wait_s = lock_wait_s
        self._lock = threading.Lock()
        self.folder: Final = _folder_of(url)
        """The state folder of a SQLite database; None for PostgreSQL."""
        self.announcer: Final[Announcer] = (
            _postgres_announcer(engine)
            if url.database is None or self.folder is None
            else SqliteAnnouncer(Path(url.database))
        )

    @classmethod
    def in_folder(cls, root: Path) -> Store:
        """SQLite at ROOT/licplane.db, made with the newest schema where there is none.

        What is there with an older one is left to `upgrade()`: the licplane of before could not
        read it any more. The first time, what `licplane` kept in files there (keys/, licenses/,
        numbers.json, trust.jwks) is taken over.

        Raises PlaneError as StateFolder.require and `check` do.
        """
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = cls.open(str(root))
        try:
            store._make(root)
            store.check()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, url: str, *, pool_size: int = 8, lock_wait_s: float = LOCK_WAIT_S) -> Store:
        """A database by SQLAlchemy URL, or by the path of its state folder.

        At most `pool_size` threads are served at a time. A writer waits `lock_wait_s` for another
        one, then PlaneError BUSY is raised.

        Raises PlaneError USAGE for a URL that is neither SQLite nor PostgreSQL. It connects when
        it is first used, and changes nothing: `check()` or `upgrade()` next.
        """
        parsed = parse_url(url)
        engine = make_engine(parsed, pool_size=pool_size, lock_wait_s=lock_wait_s)
        return cls(parsed, engine, lock_wait_s)

    def close(self) -> None:
        """Close all connections. Twice is once."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    # -- schema

    def check(self) -> None:
        """Raise PlaneError REFUSED unless the schema is the one this program knows."""
        with self._connected("read") as connection:
            upgrading.check(connection)

    def current(self) -> str:
        """The schema's revision id; empty when there is no schema."""
        with self._connected("read") as connection:
            return upgrading.current(connection)

    def newest(self) -> str:
        """The schema revision that this program wants."""
        return upgrading.NEWEST

    def upgrade(self, revision: str = "head") -> bool:
        """Bring the schema up to `revision`; whether anything was done.

        A state folder's files are taken over as `in_folder` says.
        """
        if self.folder is None:
            return self._upgrade(revision)
        with StateFolder(self.folder).locked():
            # Mostly there is nothing to do, and no reason to wait for those who write.
            is_newest = revision == "head" and self.current() == self.newest()
            done = not is_newest and self._upgrade(revision)
        self._set_files_aside()
        return done

    def _make(self, folder: Path) -> None:
        """The newest schema in a state folder that has none."""
        # With the lock also to look: of two that open a new SQLite database one is refused at once.
        with StateFolder(folder).locked():
            found = self.current()
            if not found:
                self._upgrade("head")
        if found in ("", self.newest()):
            self._set_files_aside()  # also what one that was cut off has left

    def downgrade(self, revision: str) -> bool:
        """Bring the schema down to `revision` (`base`: remove everything)."""
        with self._connected("write") as connection:
            return upgrading.downgrade(connection, revision)

    def import_folder(self, root: Path) -> bool:
        """Take over what an older licplane kept in files in `root`; False if there is nothing.

        For PostgreSQL, where no folder comes with the database. Raises PlaneError REFUSED unless
        this database has no keys and no licenses yet, INTERNAL when a file is damaged.
        """
        source = FolderImport(StateFolder(root))
        with StateFolder(root).locked():
            if not source.exists():
                return False
            with self.transaction() as transaction:
                source.run(transaction)
            source.set_aside()
        return True

    # -- work

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """A consistent snapshot."""
        with self._connected("read") as connection:
            yield Reader(connection)

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """A transaction for what hosts send; committed when the block ends well."""
        with self._connected("write") as connection:
            yield Recorder(connection)

    @contextmanager
    def transaction(self, *, dry_run: bool = False) -> Iterator[Transaction]:
        """A transaction for changes, one at a time; committed when the block ends well.

        With `dry_run` it is rolled back at the end, after everything was tried. Listeners are
        poked with the commit. Raises PlaneError BUSY when the lock is not had in time.
        """
        announced = False
        with self._connected("write", keep=not dry_run) as connection:
            transaction = Transaction(connection)
            yield transaction
            transaction.finish()
            if transaction.is_announced() and not dry_run:
                announced = True
                self.announcer.before_commit(connection)
        if announced and self.folder is not None:
            self.announcer.announce()

    @contextmanager
    def _connected(self, mode: Mode, *, keep: bool = True) -> Iterator[Connection]:
        """A connection in a transaction, which is kept if the block ends well."""
        with in_our_words(), self._turn(mode), self._engine.connect() as plain:
            connection = plain.execution_options(**options(self._engine, mode))
            with connection.begin() as transaction:
                yield connection
                if not keep:
                    transaction.rollback()

    @contextmanager
    def _turn(self, mode: Mode) -> Iterator[None]:
        """SQLite's writers of one process take turns here: its own lock is polled, up to 0.1 s."""
        if mode == "read" or self.folder is None:
            yield
            return
        if not self._lock.acquire(timeout=self._lock_wait_s):
            raise PlaneError(
                ExitCode.BUSY,
                f"The database has been locked by this process for {self._lock_wait_s:g} s",
                "Try again",
            )
        try:
            yield
        finally:
            self._lock.release()

    def _upgrade(self, revision: str) -> bool:
        with self._connected("write") as connection:
            is_new = not upgrading.current(connection)
            done = upgrading.upgrade(connection, revision)
            source = self._files()
            if is_new and source is not None and upgrading.current(connection) == self.newest():
                transaction = Transaction(connection)
                source.run(transaction)
                transaction.finish()
        return done

    def _files(self) -> FolderImport | None:
        if self.folder is None:
            return None
        source = FolderImport(StateFolder(self.folder))
        return source if source.exists() else None

    def _set_files_aside(self) -> None:
        """Also those of a run that was cut off between the commit and this."""
        source = self._files()
        if source is None or self.folder is None:
            return
        with StateFolder(self.folder).locked():
            with self.reading() as reader:
                imported = source.is_done(reader)
            if imported:
                source.set_aside()


def _folder_of(url: URL) -> Path | None:
    if url.drivername != "sqlite" or url.database is None:
        return None
    return Path(url.database).parent


def _postgres_announcer(engine: Engine) -> Announcer:
    from licplane.store.announce_postgres import PostgresAnnouncer  # with the driver

    return PostgresAnnouncer(engine)
