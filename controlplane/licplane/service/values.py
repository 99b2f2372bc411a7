# SPDX-License-Identifier: Apache-2.0
"""The words of the fleet: who asks, what a host sees, where an object counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final


class Kind(IntEnum):
    """Kinds of catalog objects; the numbers are those of licapi.control.v1.Kind."""

    RESOURCE = 1
    BINDING = 2
    LICENSE = 3
    REVOCATION = 4
    TRUST = 5


TRUST_NAME: Final = "trust"
"""Name of the one object of kind TRUST."""


class HostStatus(IntEnum):
    """The numbers are those of licapi.control.v1.HostStatus."""

    ACTIVE = 1
    EVICTED = 2
    BANNED = 3
    CLONED = 4
    DRAINING = 5

    @property
    def word(self) -> str:
        """As people write it: `active`, `evicted`..."""
        return self.name.lower()


SERVED: Final = frozenset({HostStatus.ACTIVE, HostStatus.DRAINING})
"""Hosts of these get leases and may speak; the others are told to go."""


class Role(StrEnum):
    """What a caller may do (licplane.service.access)."""

    ADMIN = "admin"
    ISSUER = "issuer"
    AUDITOR = "auditor"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for something, for the role check and the audit log."""

    name: str  # `ops`, `local:root`, `host:<uuid>`
    role: Role


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate or a bearer token turned out to stand for."""

    role: Role
    name: str  # the host's id, or the administrator's name
    host_id: str = ""  # of role HOST only
    status: HostStatus | None = None  # of role HOST only
    fingerprint: str = ""  # SHA-256 of the certificate (DER), hexadecimal; "" for tokens
    key_fingerprint: bytes = b""  # SHA-256 of its SubjectPublicKeyInfo; b"" for tokens
    not_after_unix_ms: int = 0

    @property
    def actor(self) -> Actor:
        """This identity as the author of a change."""
        return Actor(f"host:{self.host_id}" if self.host_id else self.name, self.role)


@dataclass(frozen=True, slots=True)
class View:
    """Which part of the catalog a host sees: its labels of these names, "" for those it lacks."""

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
    """Where an object counts; empty means everywhere."""

    org: str = ""
    project: str = ""
    environments: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    def covers(self, view: View) -> bool:
        """Whether an object of this scope is visible in `view`."""
        return (
            self.org in ("", view.org)
            and self.project in ("", view.project)
            and (not self.environments or view.environment in self.environments)
            and (not self.regions or view.region in self.regions)
        )


@dataclass(frozen=True, slots=True)
class CatalogObject:
    """One object as it stands, or as it went (`removed`, with an empty payload)."""

    kind: Kind
    name: str
    revision: int
    payload: bytes
    removed: bool = False
    scope: Scope = Scope()
