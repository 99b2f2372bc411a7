# SPDX-License-Identifier: Apache-2.0
"""This host's copy of the control plane's catalog, and the rules by which it changes.

A copy only ever is what some signed snapshot says: a delta is put on, the digest of the result
is compared with the snapshot's, and what does not fit is taken off again. Signatures, kernel and
disk are other people's business; here is only what follows from what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

PAYLOAD_MAX_BYTES: Final = 64 * 1024
"""Bound of one object (licapi.control.v1.Object)."""

NAME_MAX_BYTES: Final = 255
"""Bound of an object's name, in UTF-8."""

TRUST_NAME: Final = "trust"
"""Name of the one object of Kind.TRUST."""


class Kind(IntEnum):
    """What an object of the catalog is; numbers as in licapi.control.v1.Kind."""

    RESOURCE = 1  # JSON of a [[resource]] table
    BINDING = 2  # JSON of a [[binding]] table
    LICENSE = 3  # a license token; its name is the jti
    REVOCATION = 4  # a signed statement; its name is its own jti
    TRUST = 5  # JWKS


class NackReason(IntEnum):
    """Why a message of the control plane is refused; numbers as in licapi.control.v1."""

    UNSPECIFIED = 0
    SIGNATURE = 1
    DIGEST = 2
    BASE = 3
    ROLLBACK = 4
    NOT_OURS = 5
    POLICY = 6
    KERNEL = 7
    DISK = 8


class Refused(Exception):
    """A message of the control plane that is not taken; what was in force stays."""

    def __init__(self, reason: NackReason, detail: str) -> None:
        """`detail` is for people: which object, and why."""
        super().__init__(f"{reason.name.lower()}: {detail}")
        self.reason = reason
        self.detail = detail


ObjectKey = tuple[Kind, str]
"""Kind and name: what an object is told from others by."""


@dataclass(frozen=True, slots=True)
class CatalogObject:
    """One live object."""

    kind: Kind
    name: str
    revision: int  # the catalog's revision that brought this state
    payload: bytes

    @property
    def key(self) -> ObjectKey:
        """Kind and name."""
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """What became of one object."""

    kind: Kind
    name: str
    revision: int
    payload: bytes | None  # None: gone from the view

    @property
    def key(self) -> ObjectKey:
        """Kind and name."""
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class ViewKey:
    """Which part of the catalog a host sees. Empty: a host without that label."""

    org: str = ""
    project: str = ""
    environment: str = ""
    region: str = ""

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> ViewKey:
        """The view of a host with these labels."""
        return cls(
            labels.get("org", ""),
            labels.get("project", ""),
            labels.get("environment", ""),
            labels.get("region", ""),
        )


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """Bytes and their signature, as they came; verified where they are read."""

    payload: bytes
    kid: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a view is at a revision, once its signature was found to be good."""

    view: ViewKey
    revision: int
    digest: bytes  # 32 bytes, root of the digest tree over all objects of the view
    objects: int
    sealed: SignedBytes  # what proves it


@dataclass(frozen=True, slots=True)
class Delta:
    """All parts of one delta put together."""

    from_revision: int
    to_revision: int
    reset: bool  # `changes` is the whole view
    changes: tuple[ObjectChange, ...]
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class CatalogView:
    """The objects that a host is to enforce, and how they differ from those before.

    `objects` is the copy itself, not one made for you: it holds still until `apply_catalog`
    returns, and no longer. Keep the objects (they never change), not the mapping.
    """

    view: ViewKey
    revision: int
    digest: bytes
    objects: Mapping[ObjectKey, CatalogObject]
    changed: tuple[ObjectKey, ...]  # new, or with another payload
    removed: tuple[CatalogObject, ...]  # as they were
    is_whole: bool = False  # a reset: go by `objects`, whatever was before

    @property
    def trust(self) -> bytes | None:
        """The issuers' public keys (JWKS) that come with this view."""
        found = self.objects.get((Kind.TRUST, TRUST_NAME))
        return found.payload if found is not None else None


@dataclass(frozen=True, slots=True)
class StoredCatalog:
    """A catalog as it was read from the disk; nothing of it is verified."""

    host_id: str
    objects: tuple[CatalogObject, ...]
    manifest: SignedBytes


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


def check_changes(changes: Iterable[ObjectChange], to_revision: int, *, reset: bool) -> None:
    """Refuse (DIGEST) what no honest server sends: names twice, beyond bounds, of the future."""
    seen: set[ObjectKey] = set()
    for change in changes:
        name_bytes = len(change.name.encode("utf-8", errors="surrogatepass"))
        if change.key in seen:
            problem = "stands twice in one delta"
        elif not 0 < name_bytes <= NAME_MAX_BYTES or "\0" in change.name:
            problem = f"has a name of {name_bytes} bytes, or with a NUL in it"
        elif change.payload is not None and len(change.payload) > PAYLOAD_MAX_BYTES:
            problem = f"has {len(change.payload)} bytes, more than {PAYLOAD_MAX_BYTES}"
        elif change.revision > to_revision:
            problem = f"is of revision {change.revision}, beyond {to_revision}"
        elif reset and change.payload is None:
            problem = "is removed in a reset, which holds only what is there"
        else:
            seen.add(change.key)
            continue
        raise Refused(
            NackReason.DIGEST, f"{change.kind.name.lower()} {change.name[:80]!a} {problem}"
        )
