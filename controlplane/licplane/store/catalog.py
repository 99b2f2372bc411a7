# SPDX-License-Identifier: Apache-2.0
"""Reading the catalog: objects as they stand, and the log of their changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Row, func, select, tuple_

from licplane.store.catalog_model import CatalogChange, CatalogObject, Head, Kind
from licplane.store.digest import (
    CatalogDigest,
    root_of,
)
from licplane.store.schema import catalog_digest, changes, head, objects
from licplane.store.session import (
    Session,
    blob,
    checked,
    chunks,
    inconsistent,
    paged,
    scope_from,
    seal_from,
)

_STREAM_ROWS: Final = 2000
_OBJECT: Final = (
    objects.c.kind,
    objects.c.name,
    objects.c.scope,
    objects.c.payload,
    objects.c.document,
    objects.c.etag,
    objects.c.revision,
)


class CatalogReads(Session):
    """Reading the catalog."""

    def head(self) -> Head:
        """Revisions and the catalog's seal."""
        row = self._one(select(head))
        if row is None:
            raise inconsistent("it has no head")
        return Head(
            revision=row.revision,
            oldest_revision=row.oldest_revision,
            fleet_revision=row.fleet_revision,
            audit_sequence=row.audit_sequence,
            seal=seal_from(row.seal_payload, row.seal_kid, row.seal_signature),
        )

    def object(self, kind: Kind, name: str) -> CatalogObject | None:
        """A live object, or None."""
        row = self._one(select(*_OBJECT).where(objects.c.kind == kind, objects.c.name == name))
        return None if row is None else _object(row)

    def objects(self, kind: Kind, *, after: str = "", limit: int = 0) -> tuple[CatalogObject, ...]:
        """Live objects of a kind by name."""
        statement = select(*_OBJECT).where(objects.c.kind == kind)
        return tuple(map(_object, self._all(paged(statement, objects.c.name, after, limit))))

    def objects_named(self, kind: Kind, names: Sequence[str]) -> dict[str, CatalogObject]:
        """Those live objects of a kind that are named, by name."""
        found: dict[str, CatalogObject] = {}
        for part in chunks(names):
            rows = self._all(
                select(*_OBJECT).where(objects.c.kind == kind, objects.c.name.in_(part))
            )
            found.update((row.name, _object(row)) for row in rows)
        return found

    def every_object(self) -> Iterator[CatalogObject]:
        """All live objects by kind and name, streamed."""
        key = tuple_(objects.c.kind, objects.c.name)
        base = select(*_OBJECT).order_by(objects.c.kind, objects.c.name).limit(_STREAM_ROWS)
        statement = base
        while rows := self._all(statement):
            yield from map(_object, rows)
            statement = base.where(key > (rows[-1].kind, rows[-1].name))

    def changes_since(self, revision: int, *, limit: int = 0) -> tuple[CatalogChange, ...] | None:
        """Changes after `revision`, oldest first; None when they are no longer kept (reset).

        With a limit the page ends with a whole revision: it may be longer than the limit, and
        the next one begins after the revision of its last row. Empty: there are no more.
        """
        if revision < self.head().oldest_revision:
            return None
        statement = select(changes).where(changes.c.revision > revision)
        if limit:
            last = (
                select(changes.c.revision)
                .where(changes.c.revision > revision)
                .order_by(changes.c.revision, changes.c.position)
                .limit(limit)
                .subquery()
            )
            end = select(func.max(last.c.revision)).scalar_subquery()
            statement = statement.where(changes.c.revision <= end)
        return tuple(
            map(_change, self._all(statement.order_by(changes.c.revision, changes.c.position)))
        )

    def catalog_root(self) -> bytes:
        """The digest root over all live objects with their scopes, as stored (32 bytes)."""
        return root_of(self._stored_hashes())

    def compute_catalog_root(self) -> bytes:
        """The same, computed from the rows alone: differs from the stored one after tampering."""
        return CatalogDigest(self.every_object()).root()

    def _stored_hashes(self) -> bytes:
        row = self._one(select(catalog_digest.c.hashes))
        if row is None:
            raise inconsistent("it has no digest of the catalog")
        return blob(row.hashes)


@checked
def _object(row: Row[Any]) -> CatalogObject:
    return CatalogObject(
        Kind(row.kind),
        row.name,
        scope_from(row.scope),
        blob(row.payload),
        row.document,
        row.etag,
        row.revision,
    )


@checked
def _change(row: Row[Any]) -> CatalogChange:
    return CatalogChange(
        row.revision,
        row.position,
        Kind(row.kind),
        row.name,
        scope_from(row.scope),
        None if row.payload is None else blob(row.payload),
    )
