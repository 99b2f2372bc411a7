# SPDX-License-Identifier: Apache-2.0
"""Writing what administrators decide: one after the other, in the order of their commits.

A transaction first locks the head row (SQLite: the database), so revisions, fleet revisions,
audit sequences and license numbers are seen in order, and have no gaps but those that a restore
makes on purpose. What it writes is there whole or not at all; nothing else sees it before the
block ends.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, select, update

from licplane.store.catalog_changes import CatalogWrites
from licplane.store.catalog_model import Head
from licplane.store.hosts import HostWrites
from licplane.store.identities import IdentityWrites
from licplane.store.journal import JournalWrites
from licplane.store.recorder import Recorder
from licplane.store.schema import head
from licplane.store.session import inconsistent
from licplane.store.signing import SigningWrites
from lictoken.sealed import Seal


class Transaction(
    CatalogWrites, HostWrites, IdentityWrites, SigningWrites, JournalWrites, Recorder
):
    """Made by Store.transaction(). Reads see what it wrote itself, but for `changes_since`."""

    def __init__(self, connection: Connection) -> None:
        """Take the lock. SQLite has it since BEGIN IMMEDIATE, and leaves FOR UPDATE out."""
        super().__init__(connection)
        self._log = {}
        row = self._one(
            select(head.c.next_number, head.c.audit_hash, head.c.audit_sequence).with_for_update()
        )
        if row is None:
            raise inconsistent("it has no head")
        self._next_number = row.next_number
        self._audit_sequence = row.audit_sequence
        self._audit_hash = bytes(row.audit_hash)
        self._head = super().head()
        self._seal = self._head.seal
        self._oldest_revision = self._head.oldest_revision

    def head(self) -> Head:
        """The head as this transaction leaves it."""
        return replace(
            self._head,
            revision=self._next_revision or self._head.revision,
            oldest_revision=self._oldest_revision,
            fleet_revision=self._next_fleet_revision or self._head.fleet_revision,
            audit_sequence=self._audit_sequence,
            seal=self._seal,
        )

    def seal_catalog(self, seal: Seal) -> None:
        """Replace the head's seal, made over catalog_head_payload(next_revision, root_after)."""
        self._seal = seal

    def is_announced(self) -> bool:
        """Whether listeners should hear of this transaction."""
        new = self.head()
        return (new.revision, new.fleet_revision) != (
            self._head.revision,
            self._head.fleet_revision,
        )

    def finish(self) -> None:
        """Write what is written once for the whole transaction. Store calls it, then commits."""
        self._finish_catalog()
        new = self.head()
        self._run(
            update(head).values(
                revision=new.revision,
                oldest_revision=new.oldest_revision,
                fleet_revision=new.fleet_revision,
                audit_sequence=self._audit_sequence,
                audit_hash=self._audit_hash,
                next_number=self._next_number,
                seal_payload=None if self._seal is None else self._seal.payload,
                seal_kid=None if self._seal is None else self._seal.kid,
                seal_signature=None if self._seal is None else self._seal.signature,
            )
        )

    def _move_oldest(self, revision: int) -> None:
        self._oldest_revision = revision
