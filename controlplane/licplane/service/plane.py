# SPDX-License-Identifier: Apache-2.0
"""The control plane as one object: everything its API and its commands can ask for.

What hosts ask for, and what keeps it going, is here; what people ask for is in `Administration`.

Every method is synchronous and safe to call from several threads at once. Each change is one
transaction that also holds its audit entry and, where the catalog changed, the signed head.
Refusals are `PlaneError`: `Unauthenticated`, `Conflict` (an etag or counter that is not the
newest) and `Exhausted` are its subclasses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from licplane.issuer.keyring import Keyring, Keys
from licplane.issuer.sealedkey import Cost
from licplane.service import payloads
from licplane.service.administration import Administration
from licplane.service.answers import (
    CounterResult,
    CounterVerdict,
    Enrolled,
    FleetChanges,
    HeadCheck,
    HostState,
    ServerCredentials,
    ViewDelta,
    ViewState,
)
from licplane.service.core import Core
from licplane.service.enrolment import Enrolment
from licplane.service.fleet_watch import FleetWatch
from licplane.service.identities import Identities
from licplane.service.leaving import Leaving
from licplane.service.money import Money
from licplane.service.offline import Offline
from licplane.service.remembered import Recovered, Remembered
from licplane.service.replica import Replica
from licplane.service.requests import (
    EnrollRequest,
    PlaneSettings,
    Progress,
    ReenrollRequest,
    Report,
)
from licplane.service.streams import Streams
from licplane.service.telemetry import Telemetry
from licplane.service.usage.intake import UsageIntake
from licplane.service.values import Identity, View
from licplane.service.work import REQUEST_LIFE_MS
from licplane.store.database import Store
from lictoken.sealed import Seal, SealPurpose

KEPT_REVISIONS: Final = 10_000
"""Hosts that are further behind get their whole view again."""
SHADOW_KEPT_MS: Final = 90 * 86_400_000
"""Shadow usage that nobody was seen at for so long is forgotten."""


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Plane(Administration):
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
        super().__init__(
            self._core,
            Offline(self._core, self._replica, self._streams),
            Telemetry(self._core, self._replica),
            cost,
        )
        self._usage_intake = UsageIntake(self._core)
        self._remembered = Remembered(self._core)
        self._leaving = Leaving(self._core)
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
