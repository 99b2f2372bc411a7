# SPDX-License-Identifier: Apache-2.0
"""The catalog in memory: taken from the store, verified against the signed head, then served.

What hosts get comes from here and never from rows that were not verified: a database that was
altered behind licplane's back stops what is new, and cannot grant or take away anything.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from licplane.issuer.keyring import TRUST_NAME
from licplane.service.answers import HeadCheck, ViewDelta, ViewState
from licplane.service.core import Core
from licplane.service.standings import Standings
from licplane.service.values import CatalogObject, Kind, View
from licplane.service.work import head_problem
from licplane.store.catalog_model import CatalogChange, Head
from licplane.store.digest import CatalogDigest
from licplane.store.reader import Reader
from lictoken.digest import DigestTree
from lictoken.errors import TokenError
from lictoken.trust import TrustStore

_VIEWS_MAX: Final = 256
_RECENT_MAX: Final = 20_000
_FIRST: Final = {Kind.REVOCATION: 0, Kind.TRUST: 1}

Key = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class _Read:
    """All rows of one snapshot, and why they are not to be believed ("" when they are)."""

    head: Head
    objects: dict[Key, CatalogObject]
    digest: CatalogDigest
    problem: str


class Replica:
    """A verified copy of the catalog. Safe for several threads."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.RLock()
        self._head: Head | None = None
        self._objects: dict[Key, CatalogObject] = {}
        self._digest = CatalogDigest()
        self._standings = Standings()
        self._trees: OrderedDict[View, DigestTree] = OrderedDict()
        self._recent: deque[CatalogChange] = deque(maxlen=_RECENT_MAX)
        self._recent_from = 0  # changes after this revision are all in _recent
        self._problem = ""
        self._altered = ""  # what reading every row again has shown

    @property
    def revision(self) -> int:
        """Of the last good state."""
        with self._lock:
            return self._head.revision if self._head else 0

    def refresh(self) -> HeadCheck:
        """Follow the store; see Plane.refresh."""
        with self._lock, self._core.store.reading() as reader:
            head = reader.head()
            if self._head is None:
                return self._install(_read(self._core, reader))
            if (head.revision, head.seal) == (self._head.revision, self._head.seal):
                self._head = head
                self._problem = ""
                return self._check()
            if head.revision < self._head.revision:
                self._problem = (
                    f"the database went back from revision {self._head.revision} to {head.revision}"
                )
                return self._check()
            changes = reader.changes_since(self._head.revision)
            if changes is None:
                return self._install(_read(self._core, reader))
            return self._follow(head, changes)

    def verify(self) -> HeadCheck:
        """Read every row again; see Plane.verify_head. What is served goes on meanwhile."""
        with self._core.store.reading() as reader:
            read = _read(self._core, reader)
        with self._lock:
            if self._head is None:
                return self._install(read)
            if read.head.revision < self._head.revision and not read.problem:
                read = replace(read, problem="the database went back in time")
            self._altered = read.problem
            return self._check()

    def trust(self) -> bytes:
        """The trust object's payload; b"" where there is none."""
        with self._lock:
            found = self._objects.get((Kind.TRUST, TRUST_NAME))
            return found.payload if found else b""

    def snapshot(self, view: View) -> ViewState:
        """See Plane.view_snapshot."""
        with self._lock:
            objects = self._ordered(
                one for one in self._objects.values() if one.scope.visible_in(view)
            )
            tree = self._tree(view)
            return ViewState(view, self.revision, objects, tree.root(), len(tree))

    def changes(self, view: View, since: int) -> ViewDelta:
        """See Plane.view_changes."""
        with self._lock:
            head = self._head
            rows = None
            if head is not None and 0 < since <= head.revision:
                rows = self._rows_since(head, since)
            if rows is None:
                state = self.snapshot(view)
                return ViewDelta(
                    view, 0, state.revision, True, state.objects, state.digest, state.count
                )
            touched: dict[Key, CatalogObject | None] = {}
            for row in rows:
                key = (row.kind, row.name)
                live = self._objects.get(key)
                if live is not None and live.scope.visible_in(view):
                    touched[key] = live
                elif row.payload is None and row.scope.visible_in(view):
                    touched[key] = CatalogObject(row.kind, row.name, row.revision, b"", True)
            tree = self._tree(view)
            found = self._ordered(one for one in touched.values() if one is not None)
            return ViewDelta(view, since, self.revision, False, found, tree.root(), len(tree))

    def with_standings(self) -> tuple[threading.RLock, Standings]:
        """The standings, to be used under the lock that comes with them."""
        return self._lock, self._standings

    def _rows_since(self, head: Head, since: int) -> Iterable[CatalogChange] | None:
        """Changes after `since` up to the head; None where they are no longer kept."""
        if since >= self._recent_from:
            return [row for row in self._recent if row.revision > since]
        with self._core.store.reading() as reader:
            rows = reader.changes_since(since)
        if rows is None:
            return None
        return [row for row in rows if row.revision <= head.revision]

    def _install(self, read: _Read) -> HeadCheck:
        """Serve what was read, if it is good."""
        self._problem = read.problem
        if read.problem:
            return self._check()
        self._altered = ""
        self._head, self._objects, self._digest = read.head, read.objects, read.digest
        self._standings = Standings()
        for (kind, name), kept in read.objects.items():
            self._standings.put(kind, name, kept.scope, kept.payload)
        self._trees.clear()
        self._recent.clear()
        self._recent_from = read.head.revision
        self._core.forget_sealer()
        return self._check()

    def _follow(self, head: Head, changes: Iterable[CatalogChange]) -> HeadCheck:
        """Apply `changes`, and take them back if the head does not vouch for the result."""
        rows = list(changes)
        before = {(row.kind, row.name): self._objects.get((row.kind, row.name)) for row in rows}
        for row in rows:
            self._digest.apply(row)
        trust = self._objects.get((Kind.TRUST, TRUST_NAME))
        published = _parsed(trust.payload if trust else b"")
        for row in rows:
            if row.kind is Kind.TRUST:
                published = _parsed(row.payload or b"")
        self._problem = head_problem(self._core, head, self._digest.root(), published=published)
        if self._problem:
            for (kind, name), was in before.items():
                if was is None:
                    self._digest.remove(kind, name)
                else:
                    self._digest.put(kind, name, was.scope, was.payload)
            return self._check()
        for row in rows:
            self._take(row)
        for (kind, name), was in before.items():
            self._move_trees(was, self._objects.get((kind, name)))
        if self._recent.maxlen and len(self._recent) == self._recent.maxlen:
            self._recent_from = self._recent[0].revision
        self._head = head
        if any(kind is Kind.TRUST for kind, _ in before):
            self._core.forget_sealer()
        return self._check()

    def _take(self, row: CatalogChange) -> None:
        key = (row.kind, row.name)
        if row.payload is None:
            self._objects.pop(key, None)
            self._standings.remove(row.kind, row.name)
        else:
            self._objects[key] = CatalogObject(
                row.kind, row.name, row.revision, row.payload, scope=row.scope
            )
            self._standings.put(row.kind, row.name, row.scope, row.payload)
        self._recent.append(row)

    def _move_trees(self, was: CatalogObject | None, now: CatalogObject | None) -> None:
        for view, tree in self._trees.items():
            if was is not None and was.scope.visible_in(view):
                tree.remove(was.kind, was.name)
            if now is not None and now.scope.visible_in(view):
                tree.put(now.kind, now.name, now.payload)

    def _tree(self, view: View) -> DigestTree:
        tree = self._trees.get(view)
        if tree is None:
            tree = DigestTree()
            for one in self._objects.values():
                if one.scope.visible_in(view):
                    tree.put(one.kind, one.name, one.payload)
            self._trees[view] = tree
            while len(self._trees) > _VIEWS_MAX:
                self._trees.popitem(last=False)
        self._trees.move_to_end(view)
        return tree

    def _check(self) -> HeadCheck:
        problem = self._problem or self._altered
        return HeadCheck(self.revision, not problem, problem)

    @staticmethod
    def _ordered(objects: Iterable[CatalogObject]) -> tuple[CatalogObject, ...]:
        return tuple(sorted(objects, key=lambda one: (_FIRST.get(one.kind, 2), one.revision)))


def _read(core: Core, reader: Reader) -> _Read:
    head = reader.head()
    objects: dict[Key, CatalogObject] = {}
    digest = CatalogDigest()
    for one in reader.every_object():
        digest.put(one.kind, one.name, one.scope, one.payload)
        objects[one.kind, one.name] = CatalogObject(
            one.kind, one.name, one.revision, one.payload, scope=one.scope
        )
    problem = head_problem(core, head, digest.root(), published=_trust_of(objects))
    if head.revision == 0 and objects:
        problem = "there are objects and no signed head"
    return _Read(head, objects, digest, problem)


def _trust_of(objects: dict[Key, CatalogObject]) -> TrustStore | None:
    found = objects.get((Kind.TRUST, TRUST_NAME))
    return _parsed(found.payload) if found else None


def _parsed(payload: bytes) -> TrustStore | None:
    try:
        return TrustStore.from_bytes(payload) if payload else None
    except TokenError:
        return None
