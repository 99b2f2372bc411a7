# SPDX-License-Identifier: Apache-2.0
"""Changing the catalog: objects, the log of their changes, and the digest over them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import and_, delete, exists, select, tuple_

from licplane.store.catalog import CatalogReads
from licplane.store.catalog_model import CatalogObject, Head, Kind, ObjectDraft, Scope
from licplane.store.digest import (
    HASH_BYTES,
    bucket_hash,
    bucket_of,
    entry_hash,
    object_key,
    root_of,
)
from licplane.store.schema import catalog_digest, changes, objects
from licplane.store.session import (
    CHUNK,
    Values,
    blob,
    chunks,
    inconsistent,
    scope_text,
)


class _Buckets:
    """The buckets that a transaction touches: as their rows say, then as it changes them."""

    def __init__(self, hashes: bytes) -> None:
        self.before: Final = hashes
        self.entries: dict[int, dict[bytes, bytes]] = {}

    def load(self, bucket: int, entries: dict[bytes, bytes]) -> None:
        """Take in a bucket's rows, which must be those that its stored hash is over."""
        stored = self.before[bucket * HASH_BYTES : (bucket + 1) * HASH_BYTES]
        if bucket_hash(entries) != stored:
            raise inconsistent("objects of the catalog are not what was written")
        self.entries[bucket] = entries

    def after(self) -> bytes:
        """All hashes with the changes."""
        hashes = bytearray(self.before)
        for bucket, entries in self.entries.items():
            hashes[bucket * HASH_BYTES : (bucket + 1) * HASH_BYTES] = bucket_hash(entries)
        return bytes(hashes)


class CatalogWrites(CatalogReads):
    """Changing the catalog. Log, digest and revision are written by `_finish_catalog`."""

    _head: Head
    _next_revision: int | None = None
    _buckets: _Buckets | None = None
    _log: dict[tuple[int, str, str], Values]

    def next_revision(self, *, beyond: int = 0) -> int:
        """The revision that this transaction makes; all its changes share it.

        The first call, or the first change of the catalog, takes it: the next one, or where that
        is not beyond `beyond`, the first that is. Revisions that are left out never were.
        """
        if self._next_revision is None:
            self._next_revision = max(self._head.revision, beyond) + 1
        return self._next_revision

    def put_object(self, draft: ObjectDraft) -> CatalogObject:
        """Create or replace one object."""
        return self.put_objects((draft,))[0]

    def put_objects(self, drafts: Sequence[ObjectDraft]) -> tuple[CatalogObject, ...]:
        """Create or replace objects. Those that are already so keep their revision and etag.

        An object whose document alone changed gets another etag, and no revision: hosts have
        nothing of it.
        """
        wanted = {(draft.kind, draft.name): draft for draft in drafts}
        found = self._found(wanted)
        changed: dict[tuple[Kind, str], CatalogObject] = {}
        moved: list[tuple[CatalogObject | None, CatalogObject]] = []
        for key, draft in wanted.items():
            old, etag = found.get(key), _etag(draft)
            if old is not None and old.etag == etag:
                continue
            same = old is not None and (old.scope, old.payload) == (draft.scope, draft.payload)
            revision = old.revision if old is not None and same else self.next_revision()
            changed[key] = CatalogObject(
                draft.kind, draft.name, draft.scope, draft.payload, draft.document, etag, revision
            )
            if not same:
                moved.append((old, changed[key]))
        self._touch((one.kind, one.name) for _, one in moved)
        self._put(objects, [_object_row(one) for one in changed.values()])
        for old, one in moved:
            if old is not None and old.scope != one.scope:
                self._note(one.kind, one.name, old.scope, None)
            self._note(one.kind, one.name, one.scope, one.payload)
        found.update(changed)
        return tuple(found[draft.kind, draft.name] for draft in drafts)

    def remove_objects(self, kind: Kind, names: Sequence[str]) -> int:
        """Take objects out of the catalog; how many were there."""
        found = self.objects_named(kind, list(dict.fromkeys(names)))
        if not found:
            return 0
        self._touch((kind, name) for name in found)
        for part in chunks(list(found)):
            self._run(delete(objects).where(objects.c.kind == kind, objects.c.name.in_(part)))
        for one in found.values():
            self.next_revision()
            self._note(kind, one.name, one.scope, None)
        return len(found)

    def root_before(self) -> bytes:
        """The catalog's digest root as this transaction found it.

        Compare it with the root in the head's seal before signing another: so an altered
        database is never signed. Buckets of changed objects are checked against their rows as
        they are written; PlaneError INTERNAL when they differ.
        """
        return root_of(self._opened().before)

    def root_after(self) -> bytes:
        """The root with this transaction's changes."""
        return root_of(self._opened().after())

    def catalog_root(self) -> bytes:
        """The root with this transaction's changes."""
        return self.root_after()

    def compact_changes(self, before_revision: int) -> int:
        """Forget what deltas from `before_revision` on do not need; how many rows went.

        The newest row of each (kind, name, scope) is kept unless it is a removal of that age.
        """
        newer = changes.alias("newer")
        later = exists().where(
            and_(
                newer.c.kind == changes.c.kind,
                newer.c.name == changes.c.name,
                newer.c.scope == changes.c.scope,
                tuple_(newer.c.revision, newer.c.position)
                > tuple_(changes.c.revision, changes.c.position),
            )
        )
        old = changes.c.revision <= before_revision
        gone = self._run(delete(changes).where(old, later))
        removals = self._run(delete(changes).where(old, changes.c.payload.is_(None)))
        if removals and before_revision > self._head.oldest_revision:
            self._move_oldest(min(before_revision, self._head.revision))
        return gone + removals

    def _move_oldest(self, revision: int) -> None:
        raise NotImplementedError

    def _found(self, wanted: Iterable[tuple[Kind, str]]) -> dict[tuple[Kind, str], CatalogObject]:
        by_kind: dict[Kind, list[str]] = {}
        for kind, name in wanted:
            by_kind.setdefault(kind, []).append(name)
        return {
            (kind, name): one
            for kind, names in by_kind.items()
            for name, one in self.objects_named(kind, names).items()
        }

    def _opened(self) -> _Buckets:
        if self._buckets is None:
            self._buckets = _Buckets(self._stored_hashes())
        return self._buckets

    def _touch(self, keys: Iterable[tuple[Kind, str]]) -> None:
        """Load and check the buckets of these objects, before their rows change."""
        buckets = self._opened()
        wanted = {bucket_of(object_key(kind, name)) for kind, name in keys}
        missing = sorted(wanted - buckets.entries.keys())
        columns = (
            objects.c.kind, objects.c.name, objects.c.scope, objects.c.payload, objects.c.bucket
        )  # fmt: skip
        for at in range(0, len(missing), CHUNK):
            part = missing[at : at + CHUNK]
            entries: dict[int, dict[bytes, bytes]] = {bucket: {} for bucket in part}
            for row in self._all(select(*columns).where(objects.c.bucket.in_(part))):
                key = object_key(row.kind, row.name)
                entries[row.bucket][key] = entry_hash(row.scope, blob(row.payload))
            for bucket, found in entries.items():
                buckets.load(bucket, found)

    def _note(self, kind: Kind, name: str, scope: Scope, payload: bytes | None) -> None:
        """A row of the log, and the object in the digest."""
        text, key = scope_text(scope), object_key(kind, name)
        entries = self._opened().entries[bucket_of(key)]
        if payload is None:
            entries.pop(key, None)
        else:
            entries[key] = entry_hash(text, payload)
        # The last row about an object of a scope is the one that counts, also in its place.
        self._log.pop((kind, name, text), None)
        self._log[kind, name, text] = {"payload": payload}

    def _finish_catalog(self) -> None:
        """Write log and digest. The head is the caller's."""
        rows: list[Values] = [
            {
                "revision": self._next_revision,
                "position": position,
                "kind": kind,
                "name": name,
                "scope": scope,
                **values,
            }
            for position, ((kind, name, scope), values) in enumerate(self._log.items())
        ]
        self._put(changes, rows)
        if self._buckets is not None and rows:
            self._put(catalog_digest, [{"id": 1, "hashes": self._buckets.after()}])


def _etag(draft: ObjectDraft) -> str:
    hasher = hashlib.sha256()
    for part in (scope_text(draft.scope).encode(), draft.document.encode(), draft.payload):
        hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher.hexdigest()[:32]


def _object_row(one: CatalogObject) -> Values:
    return {
        "kind": int(one.kind),
        "name": one.name,
        "scope": scope_text(one.scope),
        "payload": one.payload,
        "document": one.document,
        "etag": one.etag,
        "revision": one.revision,
        "bucket": bucket_of(object_key(one.kind, one.name)),
    }
