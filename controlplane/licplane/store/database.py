# SPDX-License-Identifier: Apache-2.0
"""The control plane's database: SQLite in the state folder, or PostgreSQL by URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from licplane.store.announce import Announcer
from licplane.store.reader import Reader
from licplane.store.recorder import Recorder
from licplane.store.transaction import Transaction

__all__ = ["Reader", "Recorder", "Store", "Transaction"]


class Store:
    """One database. Threads may share it; processes each open their own (never across a fork)."""

    announcer: Announcer

    @classmethod
    def in_folder(cls, root: Path) -> Store:
        """SQLite at ROOT/licplane.db, made and upgraded to the newest schema if need be.

        The first time, what `licplane` kept in files there (keys/, licenses/, numbers.json,
        trust.jwks) is taken over. Raises PlaneError as StateFolder.require does.
        """
        raise NotImplementedError

    @classmethod
    def open(cls, url: str, *, pool_size: int = 8) -> Store:
        """Connect to a database by SQLAlchemy URL, or a path of a state folder.

        Raises PlaneError USAGE for a URL that is neither SQLite nor PostgreSQL, BUSY when it does
        not answer. Nothing is changed: `check()` or `upgrade()` next.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close all connections. Twice is once."""
        raise NotImplementedError

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    # -- schema

    def check(self) -> None:
        """Raise PlaneError REFUSED unless the schema is the one this program knows."""
        raise NotImplementedError

    def current(self) -> str:
        """The schema's revision id; empty when there is no schema."""
        raise NotImplementedError

    def newest(self) -> str:
        """The schema revision that this program wants."""
        raise NotImplementedError

    def upgrade(self, revision: str = "head") -> bool:
        """Bring the schema up to `revision`; whether anything was done."""
        raise NotImplementedError

    def downgrade(self, revision: str) -> bool:
        """Bring the schema down to `revision` (`base`: remove everything)."""
        raise NotImplementedError

    # -- work

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """A consistent snapshot."""
        raise NotImplementedError
        yield

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """A transaction for what hosts send; committed when the block ends well."""
        raise NotImplementedError
        yield

    @contextmanager
    def transaction(self, *, dry_run: bool = False) -> Iterator[Transaction]:
        """A transaction for changes, one at a time; committed when the block ends well.

        With `dry_run` it is rolled back at the end, after everything was tried. Listeners are
        poked after the commit. Raises PlaneError BUSY when the lock is not had within 10 s.
        """
        raise NotImplementedError
        yield
