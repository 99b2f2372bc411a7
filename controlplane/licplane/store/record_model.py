# SPDX-License-Identifier: Apache-2.0
"""What was signed and what was done, as values: keys, licenses, the audit log, answers.

Times are unix milliseconds, UTC, unless the name says else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lictoken.sealed import Seal


class KeyKind(StrEnum):
    """What a private key in the store signs."""

    ISSUER = "issuer"  # licenses, revocations, sealed messages: Ed25519
    AUTHORITY = "authority"  # certificates: the certification authority


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A private key, as JSON: encrypted under a passphrase, or said to be in the clear."""

    key_id: str  # the kid of an issuer's key; the hex fingerprint of an authority's
    kind: KeyKind
    owner: str  # the issuer's name; empty for the authority
    document: str  # JSON object
    created_at_unix_ms: int


@dataclass(frozen=True, slots=True)
class LicenseIssue:
    """One generation of a license, as it was handed out."""

    kid: str
    claims: str  # JSON object
    token: str  # armoured


@dataclass(frozen=True, slots=True)
class LicenseStatement:
    """One signed statement about a license: revocation, suspension or reinstatement."""

    jti: str
    issuer: str
    kid: str
    issued_at_s: int
    action: str
    generation: int
    reason: str
    token: str  # armoured


@dataclass(frozen=True, slots=True)
class LicenseRecord:
    """Everything that was signed about one license."""

    jti: str
    number: int
    generation: int  # highest one used, by an issue or a statement
    issues: tuple[LicenseIssue, ...]
    statements: tuple[LicenseStatement, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class AuditDraft:
    """Something that was done, before it has its place in the chain."""

    at_unix_ms: int
    actor: str
    role: str
    action: str
    target: str
    reason: str = ""
    request_id: str = ""
    detail: str = "{}"  # JSON object


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """An entry of the audit log, chained to the one before it."""

    sequence: int  # 1 and up, without gaps
    at_unix_ms: int
    actor: str
    role: str
    action: str
    target: str
    reason: str
    request_id: str
    detail: str
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class AuditHead:
    """A signature over the log's end as it once was. AUDIT_HEAD over `audit_head_payload`."""

    sequence: int
    hash: bytes
    seal: Seal


@dataclass(frozen=True, slots=True)
class RequestResult:
    """What a request with this id was answered, so that asking again does nothing."""

    actor: str
    request_id: str
    request_digest: bytes  # SHA-256 of the request, to find an id used for two things
    result: bytes
    at_unix_ms: int


@dataclass(frozen=True, slots=True)
class Setting:
    """A value of the control plane's own, such as the trust file (`trust.jwks`)."""

    name: str
    value: bytes
