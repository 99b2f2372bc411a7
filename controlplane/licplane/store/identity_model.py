# SPDX-License-Identifier: Apache-2.0
"""Who may come in and do what, as values: certificates, tokens and administrators.

Times are unix milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What an identity may do (docs/reference/roles.md)."""

    ADMIN = "admin"
    ISSUER = "issuer"
    AUDITOR = "auditor"
    HOST = "host"


class Credential(StrEnum):
    """How an administrator proves who it is."""

    CERTIFICATE = "certificate"
    TOKEN = "token"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of ours. A peer is served only while its row is here and not revoked."""

    fingerprint: bytes  # SHA-256 of the DER
    serial: str  # hex, lower case
    subject: str  # its SAN URI
    key_fingerprint: bytes  # SHA-256 of the SubjectPublicKeyInfo
    not_before_unix_ms: int
    not_after_unix_ms: int
    host_id: str = ""  # empty: not a host's
    revoked_at_unix_ms: int | None = None


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Lets `uses_max` hosts in until it expires. The secret itself is not kept."""

    token_id: str
    secret_hash: bytes  # SHA-256
    labels: Mapping[str, str]
    uses_max: int
    expires_at_unix_ms: int
    created_by: str
    created_at_unix_ms: int
    uses: int = 0


@dataclass(frozen=True, slots=True)
class AdminIdentity:
    """An administrator's credential and role. A bearer token itself is not kept."""

    name: str
    role: Role
    credential: Credential
    fingerprint: bytes  # SHA-256 of the certificate's DER, or of the bearer token
    created_by: str
    created_at_unix_ms: int
    expires_at_unix_ms: int
    revoked_at_unix_ms: int | None = None
