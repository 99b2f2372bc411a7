# SPDX-License-Identifier: Apache-2.0
"""The catalog on disk: what the kernel holds, in one SQLite file that is old or new.

Nothing here is believed: the reader verifies what it gets against the sealed manifest that is
kept with it. A change is written in one transaction, and made durable by its commit, which comes
after the kernel took the change; a crash before that leaves what was there.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from licagent.domain.catalog import (
    CatalogObject,
    Kind,
    NackReason,
    ObjectKey,
    Refused,
    SignedBytes,
    StoredCatalog,
)
from licagent.domain.lease import StoredLeases
from licagent.store.errors import DocumentDamaged

_FORMAT: Final = 1
_KINDS: Final = {int(kind): kind for kind in Kind}
_TURN_S: Final = 10.0
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS objects (
    kind INTEGER NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifest (
    id INTEGER PRIMARY KEY CHECK (id = 1), host_id TEXT NOT NULL,
    payload BLOB NOT NULL, kid TEXT NOT NULL, signature BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS leases (
    id INTEGER PRIMARY KEY CHECK (id = 1), payload BLOB NOT NULL, kid TEXT NOT NULL,
    signature BLOB NOT NULL, nonce BLOB NOT NULL, boot_id TEXT NOT NULL,
    requested_boottime_ns INTEGER NOT NULL);
"""


class CatalogStore:
    """One file; its methods block, and any thread may call them.

    Between `begin` and the end of what it returns, readers see what was there before, and other
    writers wait, but not for ever: the change that they wait for may need their thread.
    """

    def __init__(self, path: Path) -> None:
        """`path` is STATE/catalog.db; it is made when it is first needed."""
        self._path = path
        self._turn = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def load(self) -> StoredCatalog | None:
        """What was committed last, or None. Raises DocumentDamaged, the file set aside."""
        with self._reading() as connection:
            head = connection.execute(
                "SELECT host_id, payload, kid, signature FROM manifest"
            ).fetchone()
            if head is None:
                return None
            rows = connection.execute("SELECT kind, name, revision, payload FROM objects")
            objects = tuple(
                CatalogObject(_KINDS[kind], name, revision, payload)
                for kind, name, revision, payload in rows
            )
        return StoredCatalog(head[0], objects, SignedBytes(*head[1:]))

    def begin(
        self,
        host_id: str,
        manifest: SignedBytes,
        put: Sequence[CatalogObject],
        removed: Sequence[ObjectKey],
        *,
        reset: bool,
    ) -> PendingWrite:
        """Write a change up to its commit. Raises Refused(DISK)."""
        self._take_turn()
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            if reset:
                connection.execute("DELETE FROM objects")
            connection.executemany("DELETE FROM objects WHERE kind = ? AND name = ?", removed)
            connection.executemany(
                "REPLACE INTO objects (kind, name, revision, payload) VALUES (?, ?, ?, ?)",
                ((each.kind, each.name, each.revision, each.payload) for each in put),
            )
            connection.execute(
                "REPLACE INTO manifest (id, host_id, payload, kid, signature) "
                "VALUES (1, ?, ?, ?, ?)",
                (host_id, manifest.payload, manifest.kid, manifest.signature),
            )
        except (sqlite3.Error, OSError) as error:
            self._abandon()
            self._turn.release()
            raise self._refused(error) from error
        except BaseException:
            self._abandon()
            self._turn.release()
            raise
        return PendingWrite(self)

    def load_leases(self) -> StoredLeases | None:
        """The newest lease bundle, or None. Raises DocumentDamaged, the file set aside."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT payload, kid, signature, nonce, boot_id, requested_boottime_ns FROM leases"
            ).fetchone()
        return None if row is None else StoredLeases(SignedBytes(*row[:3]), *row[3:])

    def save_leases(self, leases: StoredLeases) -> None:
        """Replace it, durably. Raises Refused(DISK)."""
        with self._writing() as connection:
            connection.execute(
                "REPLACE INTO leases (id, payload, kid, signature, nonce, boot_id, "
                "requested_boottime_ns) VALUES (1, ?, ?, ?, ?, ?, ?)",
                (
                    leases.bundle.payload,
                    leases.bundle.kid,
                    leases.bundle.signature,
                    leases.nonce,
                    leases.boot_id,
                    leases.requested_boottime_ns,
                ),
            )

    def clear(self) -> None:
        """Forget catalog and leases: the host has become another one. Raises Refused(DISK)."""
        with self._writing() as connection:
            for table in ("objects", "manifest", "leases"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 -- names of our own

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        self._take_turn()
        try:
            self._close()
        finally:
            self._turn.release()

    def end(self, *, commit: bool) -> None:
        """For PendingWrite: end the transaction and let others go on. Raises Refused(DISK)."""
        try:
            if not commit:
                self._abandon()
                return
            try:
                self._open().execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._abandon()
                raise self._refused(error) from error
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect()
            yield connection
        except (sqlite3.Error, KeyError, OSError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.OperationalError | OSError):
                raise self._refused(error) from error
            raise self._set_aside(error) from error
        finally:
            if connection is not None:
                connection.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._take_turn()
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._abandon()
            raise self._refused(error) from error
        finally:
            self._turn.release()

    def _take_turn(self) -> None:
        if not self._turn.acquire(timeout=_TURN_S):
            raise Refused(
                NackReason.DISK, f"{self._path} is being written by another change; try again"
            )

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(fd)  # SQLite would make it with the umask's mode
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            # With a log, readers are not kept waiting by a change that waits for the kernel.
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")  # the log is synced by each commit
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                raise sqlite3.DatabaseError(f"it has the form {found}, not {_FORMAT}")
            if found == 0:
                connection.executescript(
                    f"BEGIN; {_TABLES} PRAGMA user_version = {_FORMAT}; COMMIT;"
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _abandon(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._close()  # which rolls back too

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _refused(self, error: Exception) -> Refused:
        return Refused(
            NackReason.DISK,
            f"cannot write {self._path}: {error}. Free space or make it writable; what was "
            "there before stands",
        )

    def _set_aside(self, error: Exception) -> DocumentDamaged:
        self._take_turn()
        try:
            self._close()
            kept_as = self._moved_away()
        finally:
            self._turn.release()
        return DocumentDamaged("catalog", str(error), kept_as)

    def _moved_away(self) -> Path:
        number = 1
        while (kept_as := self._path.with_name(f"{self._path.name}.damaged-{number}")).exists():
            number += 1
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(kept_as)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        return kept_as


class PendingWrite:
    """A change of the stored catalog that is not in force yet. End it once."""

    def __init__(self, store: CatalogStore) -> None:
        self._store: CatalogStore | None = store

    def commit(self) -> None:
        """Make it durable, whole. Raises Refused(DISK) with the old one in place."""
        self._end(commit=True)

    def rollback(self) -> None:
        """Forget it."""
        self._end(commit=False)

    def _end(self, *, commit: bool) -> None:
        store, self._store = self._store, None
        if store is None:
            raise RuntimeError("this change has ended")
        store.end(commit=commit)
