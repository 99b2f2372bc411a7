# SPDX-License-Identifier: Apache-2.0
"""This host's copy of the control plane's catalog, and the rules by which it changes.

A copy only ever is what some signed snapshot says: a delta is put on, the digest of the result
is compared with the snapshot's, and what does not fit is taken off again. Signatures, kernel and
disk are other people's business; here is only what follows from what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from licagent.domain.catalog import (
    CatalogObject,
    CatalogView,
    Delta,
    Manifest,
    NackReason,
    ObjectKey,
    Refused,
    check_changes,
)


class DigestTree(Protocol):
    """`lictoken.digest.DigestTree`, which this package may not import."""

    def __len__(self) -> int:
        """How many objects."""

    def put(self, kind: int, name: str, payload: bytes) -> None:
        """Add or replace an object."""

    def remove(self, kind: int, name: str) -> bool:
        """Take an object out; False if it was not there."""

    def root(self) -> bytes:
        """32 bytes."""


class Replica:
    """The copy. `stage` puts a delta on; then either `keep` or `undo`, before the next one.

    A delta costs what it changes, not what the copy holds: it is put on in place, with a note
    of what to put back.
    """

    def __init__(self, new_tree: Callable[[], DigestTree]) -> None:
        """`new_tree` is `lictoken.digest.DigestTree`."""
        self._new_tree = new_tree
        self._tree = new_tree()
        self._objects: dict[ObjectKey, CatalogObject] = {}
        self._staged: _Staged | None = None
        self.manifest: Manifest | None = None
        """Of the snapshot in force; what is staged is not in force."""

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def revision(self) -> int:
        """Of the snapshot in force; 0: none."""
        return self.manifest.revision if self.manifest is not None else 0

    @property
    def objects(self) -> Mapping[ObjectKey, CatalogObject]:
        """The objects, staged ones included. Changes under your hands."""
        return self._objects

    def is_held(self, delta: Delta) -> bool:
        """Whether `delta` leads to where the copy is already."""
        own = self.manifest
        new = delta.manifest
        return own is not None and (own.revision, own.view, own.digest) == (
            new.revision,
            new.view,
            new.digest,
        )

    def stage(self, delta: Delta) -> CatalogView:
        """Put a delta on. Raises Refused (BASE, ROLLBACK or DIGEST), the copy unchanged."""
        if self._staged is not None:
            raise RuntimeError("the delta before is neither kept nor undone")
        self._check(delta)
        staged = self._reset(delta) if delta.reset else self._change(delta)
        self._staged = staged
        found = self._tree.root()
        if found != delta.manifest.digest or len(self._tree) != delta.manifest.objects:
            self.undo()
            raise Refused(
                NackReason.DIGEST,
                f"the objects at revision {delta.to_revision} come to {len(staged.touched)} "
                f"changes and the digest {found.hex()[:16]}, the snapshot says "
                f"{delta.manifest.digest.hex()[:16]} over {delta.manifest.objects} objects",
            )
        return CatalogView(
            view=delta.manifest.view,
            revision=delta.to_revision,
            digest=delta.manifest.digest,
            objects=self._objects,
            changed=tuple(
                key
                for key, before in staged.touched.items()
                if (now := self._objects.get(key)) is not None
                and (before is None or before.payload != now.payload)
            ),
            removed=tuple(
                before
                for key, before in staged.touched.items()
                if before is not None and key not in self._objects
            ),
            is_whole=delta.reset,
        )

    def keep(self) -> None:
        """What was staged is in force."""
        staged, self._staged = self._staged, None
        if staged is not None:
            self.manifest = staged.manifest

    def undo(self) -> None:
        """What was staged is not."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        if staged.tree is not None:
            self._tree, self._objects = staged.tree, staged.objects
            return
        for key, before in staged.touched.items():
            self._set(key, before)

    def view(self) -> CatalogView | None:
        """What is in force, as if it were new: to begin with it, or to go back to it."""
        if self.manifest is None:
            return None
        return CatalogView(
            view=self.manifest.view,
            revision=self.manifest.revision,
            digest=self.manifest.digest,
            objects=self._objects,
            changed=tuple(self._objects),
            removed=(),
            is_whole=True,
        )

    def _check(self, delta: Delta) -> None:
        manifest = delta.manifest
        if manifest.revision != delta.to_revision:
            raise Refused(
                NackReason.DIGEST,
                f"the delta leads to revision {delta.to_revision}, its snapshot is of "
                f"{manifest.revision}",
            )
        if delta.to_revision < self.revision:
            raise Refused(
                NackReason.ROLLBACK,
                f"revision {delta.to_revision} is older than {self.revision}, which is in force",
            )
        if delta.reset:
            if delta.from_revision != 0:
                raise Refused(NackReason.BASE, "a reset builds on nothing, not on a revision")
        elif delta.from_revision != self.revision or self.manifest is None:
            raise Refused(
                NackReason.BASE,
                f"the delta builds on revision {delta.from_revision}, {self.revision} is in force",
            )
        elif manifest.view != self.manifest.view:
            raise Refused(NackReason.BASE, "the delta is for another view than the one in force")
        check_changes(delta.changes, delta.to_revision, reset=delta.reset)

    def _reset(self, delta: Delta) -> _Staged:
        old_tree, old = self._tree, self._objects
        tree = self._new_tree()
        objects: dict[ObjectKey, CatalogObject] = {}
        touched: dict[ObjectKey, CatalogObject | None] = {}
        for change in delta.changes:
            payload = change.payload or b""
            held = old.get(change.key)
            if held is None or held.payload != payload or held.revision != change.revision:
                held = CatalogObject(change.kind, change.name, change.revision, payload)
            objects[change.key] = held
            tree.put(change.kind, change.name, payload)
            touched[change.key] = old.get(change.key)
        touched.update((key, each) for key, each in old.items() if key not in objects)
        self._tree, self._objects = tree, objects
        return _Staged(delta.manifest, touched, old_tree, old)

    def _change(self, delta: Delta) -> _Staged:
        touched: dict[ObjectKey, CatalogObject | None] = {}
        for change in delta.changes:
            touched[change.key] = self._objects.get(change.key)
            self._set(
                change.key,
                None
                if change.payload is None
                else CatalogObject(change.kind, change.name, change.revision, change.payload),
            )
        return _Staged(delta.manifest, touched, None, {})

    def _set(self, key: ObjectKey, value: CatalogObject | None) -> None:
        if value is None:
            self._tree.remove(*key)
            self._objects.pop(key, None)
        else:
            self._tree.put(value.kind, value.name, value.payload)
            self._objects[key] = value


@dataclass(slots=True)
class _Staged:
    """Where the delta leads, and how to go back."""

    manifest: Manifest
    touched: dict[ObjectKey, CatalogObject | None]  # as they were
    tree: DigestTree | None  # of before a reset
    objects: dict[ObjectKey, CatalogObject]
