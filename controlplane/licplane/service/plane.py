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
from typing import Final

from licplane.issuer.issuing import Terms
from licplane.issuer.keyring import Keyring, Keys
from licplane.issuer.registry import Issue, Statement
from licplane.issuer.sealedkey import Cost
from licplane.service import payloads
from licplane.service.admins import Admins
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
from licplane.service.auditing import Auditing
from licplane.service.authorities import AuthorityRotation
from licplane.service.core import Core
from licplane.service.documents import Documents
from licplane.service.enrolment import Enrolment
from licplane.service.fleet_watch import FleetWatch
from licplane.service.foundations import Foundations
from licplane.service.hosts import Hosts
from licplane.service.identities import Identities
from licplane.service.leaving import Leaving
from licplane.service.money import Money
from licplane.service.offline import Offline
from licplane.service.remembered import Recovered, Remembered
from licplane.service.replica import Replica
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
from licplane.service.streams import Streams
from licplane.service.telemetry import Telemetry
from licplane.service.tokens import Tokens
from licplane.service.usage_intake import UsageIntake
from licplane.service.values import Actor, HostStatus, Identity, Role, View
from licplane.service.work import REQUEST_LIFE_MS
from licplane.store.database import Store
from lictoken.revocation import RevocationAction
from lictoken.sealed import Seal, SealPurpose
from lictoken.trust import TrustedKey

KEPT_REVISIONS: Final = 10_000
"""Hosts that are further behind get their whole view again."""
SHADOW_KEPT_MS: Final = 90 * 86_400_000
"""Shadow usage that nobody was seen at for so long is forgotten."""


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Plane:
    """All of the control plane over one store.

    `keys` are the opened private keys (`licplane.issuer.keyring.open_keys`). With None only
    reading works; a change is refused with PERMISSION, which says how to give the passphrase.
    `reopen` opens them again, for a key that another process made since; without it such a key's
    seals are not believed until the next start.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys | None,
        settings: PlaneSettings | None = None,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        cost: Cost | None = None,
        reopen: Callable[[], Keys] | None = None,
    ) -> None:
        self._core = Core(store, keys, settings or PlaneSettings(), now_ms, reopen)
        self._replica = Replica(self._core)
        self._identities = Identities(self._core)
        self._enrolment = Enrolment(self._core)
        self._streams = Streams(self._core, self._replica)
        self._offline = Offline(self._core, self._replica, self._streams)
        self._telemetry = Telemetry(self._core, self._replica)
        self._usage_intake = UsageIntake(self._core)
        self._remembered = Remembered(self._core)
        self._leaving = Leaving(self._core)
        self._hosts = Hosts(self._core)
        self._tokens = Tokens(self._core)
        self._documents = Documents(self._core)
        self._foundations = Foundations(self._core, cost)
        self._admins = Admins(self._core)
        self.authorities: Final = AuthorityRotation(self._core, cost)
        """Listing and changing the certification authorities."""
        self._auditing = Auditing(self._core)
        self.money: Final = Money(self._core)
        """Usage, bills, triggers and reports."""
        self.watch: Final = FleetWatch(self._core, self._replica)
        """The fleet in numbers, for metrics."""

    @property
    def store(self) -> Store:
        """The store it works on."""
        return self._core.store

    @property
    def settings(self) -> PlaneSettings:
        """How it is deployed."""
        return self._core.settings

    @property
    def revision(self) -> int:
        """The last good revision (`refresh`)."""
        return self._replica.revision

    def housekeeping(self) -> HeadCheck:
        """Forget what nobody asks for any more, and read every row again (`verify_head`).

        To be called every hour or so, on each replica; the next `refresh` tells of what is found.
        """
        now_ms = self._core.now_ms()
        with self._core.store.recording() as recorder:
            recorder.purge(now_ms, requests_before_unix_ms=now_ms - REQUEST_LIFE_MS)
            recorder.purge_shadow(max(0, now_ms - SHADOW_KEPT_MS))
        with self._core.store.transaction() as transaction:
            transaction.compact_changes(max(0, transaction.head().revision - KEPT_REVISIONS))
        return self._replica.verify()

    # ------------------------------------------------------------------------- who asks
    def authenticate(self, fingerprint: str) -> Identity:
        """Whose certificate this is: SHA-256 of its DER, hexadecimal.

        Hosts that may not speak (CLONED, EVICTED, BANNED) are answered too, so that they can
        be told; look at `Identity.status`. Raises Unauthenticated where no row has it, or it
        is revoked or over.
        """
        return self._identities.of_certificate(fingerprint)

    def authenticate_token(self, token: str) -> Identity:
        """Whose bearer token this is. Raises Unauthenticated."""
        return self._identities.of_token(token)

    # ------------------------------------------------------------------------ enrolment
    def enroll(self, request: EnrollRequest) -> Enrolled:
        """A join token and a certificate request become a host."""
        return self._enrolment.enroll(request)

    def renew(self, identity: Identity, csr: bytes, counter: bytes) -> Enrolled:
        """A new certificate over the one that is shown. Does not turn the counter: the
        answer holds the newest one the host was given. Raises Conflict where `counter` was
        superseded."""
        return self._enrolment.renew(identity, csr, counter)

    def reenroll(self, request: ReenrollRequest) -> Enrolled:
        """A new certificate after the old one's end, on a proof of the key."""
        return self._enrolment.reenroll(request)

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
        return self._offline.admit(
            actor,
            change,
            csr=csr,
            machine=machine,
            labels=labels,
            certificate_ttl_s=certificate_ttl_s,
            lease_ttl_s=lease_ttl_s,
            nonce=nonce,
        )

    @property
    def leaving(self) -> Leaving:
        """What hosts ask for when they go for good."""
        return self._leaving

    # ---------------------------------------------------------------------- sync stream
    def open_stream(self, host_id: str, counter: bytes) -> CounterResult:
        """Judge the counter of a Hello, and turn it; a superseded one makes the host CLONED."""
        return self._streams.open(host_id, counter)

    def keep_counter(self, host_id: str, counter: bytes) -> CounterVerdict:
        """The host has `counter` on disk: it holds from now on."""
        return self._streams.keep(host_id, counter)

    def close_stream(self, host_id: str) -> None:
        """The host's stream ended here: it no longer counts as connected."""
        self._streams.close(host_id)

    def host_state(self, host_id: str) -> HostState:
        """Status, labels, view and sealed assignment of a host."""
        return self._streams.state(host_id)

    def view_of(self, host_id: str) -> View:
        """The part of the catalog that the host sees."""
        return self._streams.view_of(host_id)

    def fleet_changes(self, cursor: int | None) -> FleetChanges:
        """Hosts changed since `cursor`; None gives the newest cursor and no hosts."""
        return self._streams.fleet_changes(cursor)

    def record_progress(self, progress: Sequence[Progress]) -> None:
        """ACKs and NACKs of hosts, many in one transaction; also what keeps them connected."""
        self._streams.record(progress)

    def lease(self, host_id: str, key_fingerprint: bytes, boot_id: str, nonce: bytes) -> Seal:
        """A sealed LeaseBundle for the licenses that count for the host now. Raises
        PlaneError REFUSED for a host that gets none."""
        return self._streams.lease(host_id, key_fingerprint, boot_id, nonce)

    # -------------------------------------------------------------------------- catalog
    def refresh(self) -> HeadCheck:
        """Take over what changed in the store since the last call, if it is signed.

        Cheap when nothing changed. After a problem the last good state stays.
        """
        return self._replica.refresh()

    def verify_head(self) -> HeadCheck:
        """Read every row again and compare them with the signed head."""
        return self._replica.verify()

    def view_snapshot(self, view: View) -> ViewState:
        """The view at the last good revision (`refresh`)."""
        return self._replica.snapshot(view)

    def view_changes(self, view: View, since: int) -> ViewDelta:
        """From revision `since` to the last good one; a reset where that cannot be told."""
        return self._replica.changes(view, since)

    def sign_manifest(self, view: View, revision: int, digest: bytes, count: int) -> Seal:
        """A sealed SnapshotManifest."""
        payload = payloads.manifest(view, revision, digest, count, self._core.now_ms())
        return self._core.current_sealer().seal(SealPurpose.SNAPSHOT, payload)

    def trust(self) -> bytes:
        """The issuers' public keys, JWKS."""
        with self._core.store.reading() as reader:
            return Keyring(reader).trust().to_bytes()

    def server_credentials(self, names: Sequence[str]) -> ServerCredentials:
        """A new key and certificate for a listener with these DNS names and addresses."""
        return self._foundations.server_credentials(names)

    def roots_changed_ms(self) -> int:
        """When the certification authorities last changed, as this database has it now.

        Certificates that were issued before are to be renewed; 0: never.
        """
        return self._core.look_at_roots().roots.changed_unix_ms

    @property
    def is_put_back(self) -> bool:
        """Whether this database is a copy that was put back and not looked at: no leases are
        given, and nobody is let in, until `advance`."""
        return self._core.is_put_back

    def take_remembered(
        self, host_id: str, statements: Sequence[bytes], assignment: Seal | None
    ) -> Recovered:
        """What a host knows and this database may have forgotten; each part signed by us."""
        return self._remembered.take(host_id, statements, assignment)

    # ------------------------------------------------------------------------ telemetry
    def record_report(self, host_id: str, report: Report) -> None:
        """Keep a host's newest report, its shadow usage and its open sockets."""
        self._telemetry.record(host_id, report)

    @property
    def usage_intake(self) -> UsageIntake:
        """Takes the usage records that hosts send."""
        return self._usage_intake

    def shadow_usage(self, actor: Actor, page: PageRequest) -> Page[ShadowUsageView]:
        """Who uses what without a binding, over all hosts, with the binding to write."""
        return self._telemetry.usage(actor, page)

    # ---------------------------------------------------------------------------- hosts
    def list_hosts(
        self, actor: Actor, labels: Mapping[str, str], page: PageRequest
    ) -> Page[HostView]:
        """Hosts with all of these labels, by host id."""
        return self._hosts.list(actor, labels, page)

    def get_host(self, actor: Actor, host: str) -> HostView:
        """By host_id, or by a hostname that only one host has."""
        return self._hosts.get(actor, host)

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
        return self._hosts.update(actor, change, host, labels=labels, status=status)

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
        return self._tokens.create(actor, change, labels, uses_max, ttl_s)

    def list_join_tokens(self, actor: Actor) -> tuple[JoinTokenView, ...]:
        """All join tokens that were not deleted, without their secrets."""
        return self._tokens.list(actor)

    def delete_join_token(self, actor: Actor, change: Change, token_id: str) -> ChangeResult:
        """End a join token."""
        return self._tokens.delete(actor, change, token_id)

    # ------------------------------------------------------------------------ documents
    def list_objects(self, actor: Actor, kind: str, page: PageRequest) -> Page[Document]:
        """Documents of one kind (resource, binding, license), or of all with ""."""
        return self._documents.list(actor, kind, page)

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
        return self._documents.apply(actor, change, documents, prune=prune, delete=delete)

    def set_license_state(
        self, actor: Actor, change: Change, license: str, action: str
    ) -> ChangeResult:
        """Revoke, suspend or reinstate a license."""
        return self._documents.set_state(actor, change, license, action)

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
        return self._documents.issue(
            actor, change, terms, kid=kid, issuer=issuer, after_revocation=after_revocation
        )

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
        return self._documents.renew(
            actor, change, jti, expires_at_s=expires_at_s, kid=kid, issuer=issuer
        )

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
        return self._documents.state(actor, change, jti, action, kid=kid, issuer=issuer)

    # ----------------------------------------------------------------------------- keys
    def create_key(
        self, actor: Actor, change: Change, *, issuer: str, passphrase: str | None
    ) -> TrustedKey:
        """Make an issuer's key and trust it. The first one needs no opened keys
        (`Plane(store, NO_KEYS)`); this Plane signs with it from then on."""
        return self._foundations.create_key(actor, change, issuer, passphrase)

    def change_passphrase(
        self, actor: Actor, change: Change, *, old: str, new: str
    ) -> tuple[int, tuple[str, ...]]:
        """Put every key that `old` opens under `new`, all or none; how many, and the ids of
        those that are under a third one and stay so. Processes that opened them go on.

        Raises PlaneError PERMISSION where `old` opens none, REFUSED for a `new` that is too short.
        """
        return self._foundations.change_passphrase(actor, change, old, new)

    def retire_key(
        self,
        actor: Actor,
        change: Change,
        kid: str,
        *,
        resign: bool = False,
        anyway: bool = False,
    ) -> tuple[TrustedKey, bool, int]:
        """Retire a key (kid or its first characters), whether it was not before, and how many
        licenses were signed again by the issuer's newest other key (`resign`).

        Refused while a served host may know no other key that seals, unless `anyway`.
        """
        return self._foundations.retire_key(actor, change, kid, resign=resign, anyway=anyway)

    def ensure_foundations(self, actor: Actor, *, issuer: str, passphrase: str | None) -> bool:
        """Make what `serve` needs and is not there: an issuer's key, and the certification
        authority. Whether anything was made. Start with `Plane(store, NO_KEYS)` where the
        database has no keys at all."""
        return self._foundations.ensure(actor, issuer, passphrase)

    def advance(self, actor: Actor, change: Change, beyond: int) -> int:
        """After an old copy of the database was put back: take the catalog's revision beyond
        what hosts hold, since they never take a lower one; then they get their view anew.
        Gives the revision reached."""
        return self._foundations.advance(actor, change, beyond)

    # ------------------------------------------------------------------- administrators
    def create_admin(
        self, actor: Actor, change: Change, *, name: str, role: Role, means: str, ttl_s: int = 0
    ) -> AdminCreated:
        """A client certificate (`means` "certificate") or a bearer token ("token")."""
        return self._admins.create(actor, change, name=name, role=role, means=means, ttl_s=ttl_s)

    def list_admins(self, actor: Actor) -> tuple[AdminView, ...]:
        """Every means of signing in that was handed out."""
        return self._admins.list(actor)

    def revoke_admin(self, actor: Actor, change: Change, name: str) -> ChangeResult:
        """End every certificate and token of an administrator."""
        return self._admins.revoke(actor, change, name)

    # ---------------------------------------------------------------------------- audit
    def list_audit(self, actor: Actor, after: int, size: int) -> tuple[AuditView, ...]:
        """Entries after a sequence number, oldest first."""
        return self._auditing.list(actor, after, size)

    def verify_audit(self, actor: Actor, head: bytes | None = None) -> AuditCheck:
        """Whether the log is whole; `head` is one exported earlier (`audit_head`)."""
        return self._auditing.verify(actor, head)

    def audit_head(self, actor: Actor) -> bytes:
        """The newest signed head, as a JSON object to keep elsewhere."""
        return self._auditing.head(actor)
