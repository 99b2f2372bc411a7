# SPDX-License-Identifier: Apache-2.0
"""What the service answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from licplane.service.requests import Document
from licplane.service.values import CatalogObject, HostStatus, View
from lictoken.sealed import Seal

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A part of a list; `next_token` is "" at its end."""

    items: tuple[Item, ...]
    next_token: str = ""
    revision: int = 0  # the catalog's, where the list is of the catalog


@dataclass(frozen=True, slots=True)
class Enrolled:
    """licapi.control.v1.EnrollResponse."""

    host_id: str
    certificate_chain: tuple[bytes, ...]
    ca_certificates: tuple[bytes, ...]
    trust: bytes
    assignment: Seal
    counter: bytes
    changed: bool
    not_after_unix_ms: int
    control_address: str


@dataclass(frozen=True, slots=True)
class OfflineAdmission:
    """A host enrolled by files: `bundle` goes to `licagent enroll --bundle FILE`.

    `bundle` is a JSON object (schema_version 1), bytes as base64url: host_id,
    certificate_chain [DER], ca_certificates [DER], trust (JWKS), assignment, manifest and lease
    (objects of payload, kid, signature), objects [{kind, name, revision, payload}],
    control_address.
    """

    host_id: str
    bundle: bytes
    not_after_unix_ms: int


class CounterVerdict(StrEnum):
    """What the counter of a Hello tells."""

    ACCEPTED = "accepted"
    CLONED = "cloned"


@dataclass(frozen=True, slots=True)
class CounterResult:
    """`counter` is the next one, to be sent in Welcome; b"" when the host is cloned."""

    verdict: CounterVerdict
    counter: bytes


@dataclass(frozen=True, slots=True)
class HostState:
    """What a sync stream needs to know of its host."""

    host_id: str
    status: HostStatus
    labels: Mapping[str, str]
    view: View
    assignment_sequence: int
    assignment: Seal


@dataclass(frozen=True, slots=True)
class ViewState:
    """A view at a revision, whole."""

    view: View
    revision: int
    objects: tuple[CatalogObject, ...]
    digest: bytes  # root over (kind, name, payload) of the objects
    count: int


@dataclass(frozen=True, slots=True)
class ViewDelta:
    """What leads a view from one revision to another. With `reset`, `objects` are the whole."""

    view: View
    from_revision: int  # 0 with `reset`
    to_revision: int
    reset: bool
    objects: tuple[CatalogObject, ...]  # revocations first, then trust, then by revision
    digest: bytes  # of the view at to_revision
    count: int


@dataclass(frozen=True, slots=True)
class HeadCheck:
    """Whether the catalog's rows are those that were signed. `problem` is "" when they are."""

    revision: int  # of the last good state, which goes on being served
    intact: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FleetChanges:
    """Hosts whose status, labels or certificates changed; ask again from `cursor`."""

    cursor: int
    host_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """licapi.control.v1.Difference."""

    action: str  # create, update, delete, none
    kind: str
    name: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Impact:
    """licapi.control.v1.Impact."""

    host_id: str
    hostname: str
    license: str
    resource: str
    selector: str
    sockets: int
    report_age_ms: int


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """licapi.control.v1.ChangeResponse."""

    changed: bool
    dry_run: bool = False
    revision: int = 0
    differences: tuple[Difference, ...] = ()
    impact: tuple[Impact, ...] = ()
    etag: str = ""
    tokens: tuple[str, ...] = ()  # JWS compact


@dataclass(frozen=True, slots=True)
class HostView:
    """licapi.control.v1.Host."""

    host_id: str
    hostname: str
    status: HostStatus
    labels: Mapping[str, str]
    enrolled_at_unix_ms: int
    last_seen_unix_ms: int
    connected: bool
    acked_revision: int
    revision: int
    last_nack: str
    report_json: str
    certificate_not_after_unix_ms: int
    etag: str
    drift: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JoinTokenView:
    """licapi.control.v1.JoinToken."""

    id: str
    labels: Mapping[str, str]
    uses: int
    uses_max: int
    expires_at_unix_ms: int
    created_by: str


@dataclass(frozen=True, slots=True)
class JoinTokenCreated:
    """`join` is what `licagent enroll` takes; it is shown once. "" in a dry run."""

    token: JoinTokenView
    join: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ShadowUsageView:
    """licapi.control.v1.FleetShadowUsage."""

    resource: str
    selector: str
    executable: str
    user: str
    hosts: int
    count: int
    first_unix_ms: int
    last_unix_ms: int
    suggestion: str  # a [[binding]] in TOML


@dataclass(frozen=True, slots=True)
class AuditView:
    """licapi.control.v1.AuditEntry."""

    sequence: int
    at_unix_ms: int
    actor: str
    role: str
    action: str
    target: str
    reason: str
    request_id: str
    detail_json: str
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class AuditCheck:
    """What became of the audit log; no `problems`: nothing."""

    entries: int
    problems: tuple[str, ...]

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class AdminView:
    """An administrator's means to sign in."""

    name: str
    role: str
    means: str  # certificate or token
    id: str  # the certificate's fingerprint or the token's id
    created_at_unix_ms: int
    expires_at_unix_ms: int
    revoked: bool


@dataclass(frozen=True, slots=True)
class AdminCreated:
    """A client certificate with its private key (`pem`: key, certificate, root), or a bearer
    `token`; the other is "". Shown once."""

    admin: AdminView
    pem: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ServerCredentials:
    """What a listener needs: PEM texts; the key is in memory only."""

    private_key_pem: bytes = field(repr=False)
    certificate_chain_pem: bytes
    ca_pem: bytes
    not_after_unix_ms: int


__all__ = [
    "AdminCreated",
    "AdminView",
    "AuditCheck",
    "AuditView",
    "ChangeResult",
    "CounterResult",
    "CounterVerdict",
    "Difference",
    "Document",
    "Enrolled",
    "FleetChanges",
    "HeadCheck",
    "HostState",
    "HostView",
    "Impact",
    "JoinTokenCreated",
    "JoinTokenView",
    "OfflineAdmission",
    "Page",
    "ServerCredentials",
    "ShadowUsageView",
    "ViewDelta",
    "ViewState",
]
