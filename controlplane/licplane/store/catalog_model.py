# SPDX-License-Identifier: Apache-2.0
"""The catalog, as values: its objects, where they count, and what of it a host sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from lictoken.sealed import Seal


class Kind(IntEnum):
    """Kinds of catalog objects; numbers as licapi.control.v1.Kind has them."""

    RESOURCE = 1
    BINDING = 2
    LICENSE = 3
    REVOCATION = 4
    TRUST = 5


@dataclass(frozen=True, slots=True)
class View:
    """Which part of the catalog a host sees. An empty name: a host without that label."""

    org: str = ""
    project: str = ""
    environment: str = ""
    region: str = ""

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> View:
        """The view of a host with these labels."""
        return cls(
            labels.get("org", ""),
            labels.get("project", ""),
            labels.get("environment", ""),
            labels.get("region", ""),
        )


@dataclass(frozen=True, slots=True)
class Scope:
    """Where an object counts. Empty means everywhere; environments and regions are sorted."""

    org: str = ""
    project: str = ""
    environments: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    def visible_in(self, view: View) -> bool:
        """Whether hosts of this view see the object."""
        return (
            self.org in ("", view.org)
            and self.project in ("", view.project)
            and (not self.environments or view.environment in self.environments)
            and (not self.regions or view.region in self.regions)
        )


EVERYWHERE: Final = Scope()


@dataclass(frozen=True, slots=True)
class ObjectDraft:
    """An object of the catalog as somebody wants it."""

    kind: Kind
    name: str
    scope: Scope
    payload: bytes  # what hosts get
    document: str = ""  # JSON as administrators see it; empty where there is none


@dataclass(frozen=True, slots=True)
class CatalogObject:
    """A live object of the catalog."""

    kind: Kind
    name: str
    scope: Scope
    payload: bytes
    document: str
    etag: str  # changes with scope, payload or document
    revision: int  # that brought this state


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """A row of the change log. For one object, the row that comes last is how it stands.

    An object whose scope changed has two rows: removed from the old scope, then put into the new.
    """

    revision: int
    position: int  # order within the revision
    kind: Kind
    name: str
    scope: Scope
    payload: bytes | None  # None: removed


@dataclass(frozen=True, slots=True)
class Head:
    """Where the database is."""

    revision: int  # of the catalog; 0: nothing was ever put
    oldest_revision: int  # deltas are possible from this one on
    fleet_revision: int  # grows with every change of a host's labels or status
    audit_sequence: int  # of the last audit entry; 0: none
    seal: Seal | None  # CATALOG_HEAD over `catalog_head_payload(revision, root)`
