# SPDX-License-Identifier: Apache-2.0
"""What the store keeps, as values. Times are unix milliseconds, UTC, unless the name says else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final

from lictoken.sealed import Seal

NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class Kind(IntEnum):
    """Kinds of catalog objects; numbers as licapi.control.v1.Kind has them."""

    RESOURCE = 1
    BINDING = 2
    LICENSE = 3
    REVOCATION = 4
    TRUST = 5


class HostStatus(IntEnum):
    """Numbers as licapi.control.v1.HostStatus has them."""

    ACTIVE = 1
    EVICTED = 2
    BANNED = 3
    CLONED = 4
    DRAINING = 5
    LEAVING = 6

    @property
    def word(self) -> str:
        """As people write it: `active`, `evicted`..."""
        return self.name.lower()


class Role(StrEnum):
    """What an identity may do (docs/reference/roles.md)."""

    ADMIN = "admin"
    ISSUER = "issuer"
    AUDITOR = "auditor"
    HOST = "host"


class KeyKind(StrEnum):
    """What a private key in the store signs."""

    ISSUER = "issuer"  # licenses, revocations, sealed messages: Ed25519
    AUTHORITY = "authority"  # certificates: the certification authority


class Credential(StrEnum):
    """How an administrator proves who it is."""

    CERTIFICATE = "certificate"
    TOKEN = "token"


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
class Host:
    """An enrolled host: what administrators decided about it, and what it said of itself."""

    host_id: str  # UUID, lower case
    hostname: str
    status: HostStatus
    labels: Mapping[str, str]
    machine_id: str  # 32 hex digits, or empty
    key_fingerprint: bytes  # SHA-256 of the SubjectPublicKeyInfo of its key
    assignment_sequence: int  # grows with every change of labels or status; starts at 1
    enrolled_at_unix_ms: int
    join_token: str = ""  # id of the token it came with; empty: admitted from a file
    agent_version: str = ""
    kernel_release: str = ""
    fleet_revision: int = 0  # Head.fleet_revision of its last change; set by the store

    @property
    def view(self) -> View:
        """The part of the catalog that this host sees."""
        return View.of(self.labels)


@dataclass(frozen=True, slots=True)
class HostPresence:
    """What the streams of a host last told; written often, by any replica."""

    host_id: str
    last_seen_unix_ms: int
    connected_until_unix_ms: int = 0  # later than now: a stream is open; the replica extends it
    replica: str = ""
    acked_revision: int = 0
    last_nack: str = ""


@dataclass(frozen=True, slots=True)
class HostCounters:
    """The rotating counter of a host: the one confirmed, and the one given and not yet kept."""

    host_id: str
    current: bytes
    pending: bytes = b""


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
class HostReport:
    """The last report of a host, as it came (licapi.control.v1.HostReport, serialized)."""

    host_id: str
    at_unix_ms: int  # when it came, by our clock
    report: bytes


@dataclass(frozen=True, slots=True)
class ShadowRow:
    """Use of a resource without a binding, on one host since one boot of its agent."""

    host_id: str
    boot_id: str
    resource: str
    selector: str
    executable: str
    user: str
    count: int  # total since that boot
    first_unix_ms: int
    last_unix_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FleetShadow:
    """Shadow usage summed over hosts and boots."""

    resource: str
    selector: str
    executable: str
    user: str
    hosts: int
    count: int
    first_unix_ms: int
    last_unix_ms: int


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
