# SPDX-License-Identifier: Apache-2.0
"""What the control plane's catalog consists of, as a host sees it: objects, changes, snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

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
