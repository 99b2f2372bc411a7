# SPDX-License-Identifier: Apache-2.0
"""The control plane as one object: everything its API and its commands can ask for.

Every method is synchronous and safe to call from several threads at once. Each change is one
transaction that also holds its audit entry and, where the catalog changed, the signed head.
Refusals are `PlaneError`: `Unauthenticated`, `Conflict` (an etag or counter that is not the
newest) and `Exhausted` are its subclasses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from licplane.service.answers import (
    AdminCreated,
    AdminView,
    AuditCheck,
    AuditView,
    ChangeResult,
    CounterResult,
    CounterVerdict,
    Enrolled,
    FleetChanges,
    HeadCheck,
    HostState,
    HostView,
    JoinTokenCreated,
    JoinTokenView,
    OfflineAdmission,
    Page,
    ServerCredentials,
    ShadowUsageView,
    ViewDelta,
    ViewState,
)
from licplane.service.requests import (
    Change,
    Document,
    EnrollRequest,
    Machine,
    PageRequest,
    PlaneSettings,
    Progress,
    ReenrollRequest,
    Report,
)
from licplane.service.values import Actor, HostStatus, Identity, Role, View
from lictoken.sealed import Seal

if TYPE_CHECKING:
    from licplane.issuer.issuing import Terms
    from licplane.issuer.keyring import Keys
    from licplane.issuer.registry import Issue, Statement
    from licplane.store.database import Store
    from lictoken.revocation import RevocationAction
    from lictoken.trust import TrustedKey


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Plane:
    """All of the control plane over one store.

    `keys` are the opened private keys (`licplane.issuer.keyring.open_keys`). With None only
    reading works; a change is refused with PERMISSION, which says how to give the passphrase.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys | None,
        settings: PlaneSettings | None = None,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------------------- who asks
    def authenticate(self, fingerprint: str) -> Identity:
        """Whose certificate this is: SHA-256 of its DER, hexadecimal.

        Hosts that may not speak (CLONED, EVICTED, BANNED) are answered too, so that they can
        be told; look at `Identity.status`. Raises Unauthenticated where no row has it, or it
        is revoked or over.
        """
        raise NotImplementedError

    def authenticate_token(self, token: str) -> Identity:
        """Whose bearer token this is. Raises Unauthenticated."""
        raise NotImplementedError

    # ------------------------------------------------------------------------ enrolment
    def enroll(self, request: EnrollRequest) -> Enrolled:
        """A join token and a certificate request become a host."""
        raise NotImplementedError

    def renew(self, identity: Identity, csr: bytes, counter: bytes) -> Enrolled:
        """A new certificate over the one that is shown. Does not turn the counter: the
        answer holds the newest one the host was given. Raises Conflict where `counter` was
        superseded."""
        raise NotImplementedError

    def reenroll(self, request: ReenrollRequest) -> Enrolled:
        """A new certificate after the old one's end, on a proof of the key."""
        raise NotImplementedError

    def admit_offline(
        self,
        actor: Actor,
        change: Change,
        *,
        csr: bytes,
        machine: Machine,
        labels: Mapping[str, str],
        certificate_ttl_s: int,
        lease_ttl_s: int,
        nonce: bytes = b"",
    ) -> OfflineAdmission:
        """Enrol a host with no network: everything it needs, as one file."""
        raise NotImplementedError

    # ---------------------------------------------------------------------- sync stream
    def open_stream(self, host_id: str, counter: bytes) -> CounterResult:
        """Judge the counter of a Hello, and turn it; a superseded one makes the host CLONED."""
        raise NotImplementedError

    def keep_counter(self, host_id: str, counter: bytes) -> CounterVerdict:
        """The host has `counter` on disk: it holds from now on."""
        raise NotImplementedError

    def close_stream(self, host_id: str) -> None:
        """The host's stream ended here: it no longer counts as connected."""
        raise NotImplementedError

    def host_state(self, host_id: str) -> HostState:
        """Status, labels, view and sealed assignment of a host."""
        raise NotImplementedError

    def view_of(self, host_id: str) -> View:
        """The part of the catalog that the host sees."""
        raise NotImplementedError

    def fleet_changes(self, cursor: int | None) -> FleetChanges:
        """Hosts changed since `cursor`; None gives the newest cursor and no hosts."""
        raise NotImplementedError

    def record_progress(self, progress: Sequence[Progress]) -> None:
        """ACKs and NACKs of hosts, many in one transaction; also what keeps them connected."""
        raise NotImplementedError

    def lease(self, host_id: str, key_fingerprint: bytes, boot_id: str, nonce: bytes) -> Seal:
        """A sealed LeaseBundle for the licenses that count for the host now. Raises
        PlaneError REFUSED for a host that gets none."""
        raise NotImplementedError

    # -------------------------------------------------------------------------- catalog
    def refresh(self) -> HeadCheck:
        """Take over what changed in the store since the last call, if it is signed.

        Cheap when nothing changed. After a problem the last good state stays.
        """
        raise NotImplementedError

    def verify_head(self) -> HeadCheck:
        """Read every row again and compare them with the signed head."""
        raise NotImplementedError

    def view_snapshot(self, view: View) -> ViewState:
        """The view at the last good revision (`refresh`)."""
        raise NotImplementedError

    def view_changes(self, view: View, since: int) -> ViewDelta:
        """From revision `since` to the last good one; a reset where that cannot be told."""
        raise NotImplementedError

    def sign_manifest(self, view: View, revision: int, digest: bytes, count: int) -> Seal:
        """A sealed SnapshotManifest."""
        raise NotImplementedError

    def trust(self) -> bytes:
        """The issuers' public keys, JWKS."""
        raise NotImplementedError

    def server_credentials(self, names: Sequence[str]) -> ServerCredentials:
        """A new key and certificate for a listener with these DNS names and addresses."""
        raise NotImplementedError

    # ------------------------------------------------------------------------ telemetry
    def record_report(self, host_id: str, report: Report) -> None:
        """Keep a host's newest report, its shadow usage and its open sockets."""
        raise NotImplementedError

    def shadow_usage(self, actor: Actor, page: PageRequest) -> Page[ShadowUsageView]:
        """Who uses what without a binding, over all hosts, with the binding to write."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------- hosts
    def list_hosts(
        self, actor: Actor, labels: Mapping[str, str], page: PageRequest
    ) -> Page[HostView]:
        """Hosts with all of these labels, by host id."""
        raise NotImplementedError

    def get_host(self, actor: Actor, host: str) -> HostView:
        """By host_id, or by a hostname that only one host has."""
        raise NotImplementedError

    def update_host(
        self,
        actor: Actor,
        change: Change,
        host: str,
        *,
        labels: Mapping[str, str],
        status: HostStatus | None = None,
    ) -> ChangeResult:
        """Set labels (an empty value removes one) or the status of a host."""
        raise NotImplementedError

    # ---------------------------------------------------------------------- join tokens
    def create_join_token(
        self,
        actor: Actor,
        change: Change,
        *,
        labels: Mapping[str, str],
        uses_max: int,
        ttl_s: int,
    ) -> JoinTokenCreated:
        """A token with which `uses_max` hosts may enrol."""
        raise NotImplementedError

    def list_join_tokens(self, actor: Actor) -> tuple[JoinTokenView, ...]:
        """All join tokens that were not deleted, without their secrets."""
        raise NotImplementedError

    def delete_join_token(self, actor: Actor, change: Change, token_id: str) -> ChangeResult:
        """End a join token."""
        raise NotImplementedError

    # ------------------------------------------------------------------------ documents
    def list_objects(self, actor: Actor, kind: str, page: PageRequest) -> Page[Document]:
        """Documents of one kind (resource, binding, license), or of all with ""."""
        raise NotImplementedError

    def apply(
        self,
        actor: Actor,
        change: Change,
        documents: Sequence[Document],
        *,
        prune: bool = False,
        delete: bool = False,
    ) -> ChangeResult:
        """Make the catalog hold these documents; all of them or none."""
        raise NotImplementedError

    def set_license_state(
        self, actor: Actor, change: Change, license: str, action: str
    ) -> ChangeResult:
        """Revoke, suspend or reinstate a license."""
        raise NotImplementedError

    def issue_license(
        self,
        actor: Actor,
        change: Change,
        terms: Terms,
        *,
        kid: str | None = None,
        issuer: str | None = None,
        after_revocation: bool = False,
    ) -> Issue:
        """Sign a license and put it into the catalog; see licplane.issuer.issuing.issue."""
        raise NotImplementedError

    def renew_license(
        self,
        actor: Actor,
        change: Change,
        jti: str,
        *,
        expires_at_s: int,
        kid: str | None = None,
        issuer: str | None = None,
    ) -> Issue:
        """Issue a license again with a later end and all else as it was."""
        raise NotImplementedError

    def state_license(
        self,
        actor: Actor,
        change: Change,
        jti: str,
        action: RevocationAction,
        *,
        kid: str | None = None,
        issuer: str | None = None,
    ) -> Statement:
        """Sign a statement about a license and put it into the catalog. The reason for the
        hosts' events is `change.reason`. `set_license_state` is the same for machines."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------- keys
    def create_key(
        self, actor: Actor, change: Change, *, issuer: str, passphrase: str | None
    ) -> TrustedKey:
        """Make an issuer's key and trust it. The first one needs no opened keys
        (`Plane(store, NO_KEYS)`); this Plane signs with it from then on."""
        raise NotImplementedError

    def retire_key(self, actor: Actor, change: Change, kid: str) -> tuple[TrustedKey, bool]:
        """Retire a key (kid or its first characters), and whether it was not before."""
        raise NotImplementedError

    def ensure_foundations(self, actor: Actor, *, issuer: str, passphrase: str | None) -> bool:
        """Make what `serve` needs and is not there: an issuer's key, and the certification
        authority. Whether anything was made. Start with `Plane(store, NO_KEYS)` where the
        database has no keys at all."""
        raise NotImplementedError

    # ------------------------------------------------------------------- administrators
    def create_admin(
        self, actor: Actor, change: Change, *, name: str, role: Role, means: str, ttl_s: int = 0
    ) -> AdminCreated:
        """A client certificate (`means` "certificate") or a bearer token ("token")."""
        raise NotImplementedError

    def list_admins(self, actor: Actor) -> tuple[AdminView, ...]:
        """Every means of signing in that was handed out."""
        raise NotImplementedError

    def revoke_admin(self, actor: Actor, change: Change, name: str) -> ChangeResult:
        """End every certificate and token of an administrator."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------- audit
    def list_audit(self, actor: Actor, after: int, size: int) -> tuple[AuditView, ...]:
        """Entries after a sequence number, oldest first."""
        raise NotImplementedError

    def verify_audit(self, actor: Actor, head: bytes | None = None) -> AuditCheck:
        """Whether the log is whole; `head` is one exported earlier (`audit_head`)."""
        raise NotImplementedError

    def audit_head(self, actor: Actor) -> bytes:
        """The newest signed head, as a JSON object to keep elsewhere."""
        raise NotImplementedError
