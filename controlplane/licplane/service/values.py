# SPDX-License-Identifier: Apache-2.0
"""The words of the fleet: who asks, what a host sees, where an object counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from licplane.issuer.keyring import TRUST_NAME
from licplane.store.catalog_model import EVERYWHERE, Kind, Scope, View
from licplane.store.host_model import HostStatus
from licplane.store.identity_model import Role

__all__ = [
    "SERVED",
    "TRUST_NAME",
    "Actor",
    "CatalogObject",
    "HostStatus",
    "Identity",
    "Kind",
    "Role",
    "Scope",
    "View",
]

SERVED: Final = frozenset({HostStatus.ACTIVE, HostStatus.DRAINING, HostStatus.LEAVING})
"""Hosts of these may speak, and active ones get leases; the others are told to go."""


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
    issued_unix_ms: int = 0  # of a certificate

    @property
    def actor(self) -> Actor:
        """This identity as the author of a change."""
        return Actor(f"host:{self.host_id}" if self.host_id else self.name, self.role)


@dataclass(frozen=True, slots=True)
class CatalogObject:
    """One object as it stands, or as it went (`removed`, with an empty payload)."""

    kind: Kind
    name: str
    revision: int
    payload: bytes
    removed: bool = False
    scope: Scope = EVERYWHERE
