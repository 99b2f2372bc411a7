# SPDX-License-Identifier: Apache-2.0
"""A plane in memory, with a real certification authority: what the API is tested against."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import secrets
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from licapi.control.v1 import common_pb2, sync_pb2
from licplane.errors import ExitCode, PlaneError, Unauthenticated
from licplane.service.answers import (
    CounterResult,
    CounterVerdict,
    FleetChanges,
    HeadCheck,
    HostState,
    Page,
    ServerCredentials,
    ViewDelta,
)
from licplane.service.fleet_watch import FleetState, LicenseEnd
from licplane.service.requests import Progress, Report
from licplane.service.values import (
    EVERYWHERE,
    CatalogObject,
    HostStatus,
    Identity,
    Kind,
    Role,
    Scope,
    View,
)
from licplane.store.fleet_counts import FleetCounts
from lictoken.digest import digest_of
from lictoken.keys import SigningKey
from lictoken.sealed import Seal, Sealer, SealPurpose

PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    key_pem: bytes
    chain_pem: bytes
    fingerprint: str
    key_fingerprint: bytes


class Authority:
    """A root and what it signs, P-256."""

    def __init__(self, name: str = "test root") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self._subject, self._key.public_key(), ca=True)
        self.pem = self.certificate.public_bytes(PEM)

    def issue(
        self,
        uri: str = "",
        names: Sequence[str] = (),
        *,
        starts_s: int = -10,
        ends_s: int = 3600,
        rsa_key: Any = None,
    ) -> Issued:
        key = rsa_key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")])
        found: list[x509.GeneralName] = []
        if uri:
            found.append(x509.UniformResourceIdentifier(uri))
        for name in names:
            try:
                found.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                found.append(x509.DNSName(name))
        made = self._sign(subject, key.public_key(), found, starts_s=starts_s, ends_s=ends_s)
        public = key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return Issued(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
            made.public_bytes(PEM),
            hashlib.sha256(made.public_bytes(DER)).hexdigest(),
            hashlib.sha256(public).digest(),
        )

    def _sign(
        self,
        subject: x509.Name,
        public: Any,
        names: Sequence[x509.GeneralName] = (),
        *,
        ca: bool = False,
        starts_s: int = -10,
        ends_s: int = 3600,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(seconds=min(starts_s, ends_s - 10)))
            .not_valid_after(now + timedelta(seconds=ends_s))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@dataclass
class HostRow:
    """A host as the stand-in keeps it."""

    labels: dict[str, str]
    status: HostStatus = HostStatus.ACTIVE
    sequence: int = 1
    current: bytes = b""
    pending: bytes = b""
    changed_at: int = 0

    @property
    def view(self) -> View:
        return View.of(self.labels)


@dataclass
class _Change:
    revision: int
    kind: Kind
    name: str
    scope: Scope


@dataclass
class Bell:
    """A subscription that the stand-in rings."""

    event: asyncio.Event
    loop: asyncio.AbstractEventLoop

    async def wait(self) -> None:
        await self.event.wait()
        self.event.clear()

    async def close(self) -> None:
        self.event.clear()


@dataclass
class NoMoney:
    """Usage and money of a plane that has none."""

    def keep(self) -> bool:
        return False


@dataclass
class Fleet:
    """Two connected hosts, and two licenses, one of which is over."""

    fails: bool = False

    def answers(self) -> int:
        if self.fails:
            raise PlaneError(ExitCode.BUSY, "no database", "wait")
        return 1

    def read(self) -> FleetState:
        self.answers()
        counts = FleetCounts(1, {(HostStatus.ACTIVE, True): 2}, 0, 0, 0, 0, {}, 0, 0, 0)
        now_ms = time.time_ns() // 1_000_000
        licenses = (
            LicenseEnd("old", now_ms // 1000 - 60, "active"),
            LicenseEnd("acme", now_ms // 1000 + 3600, "active"),
        )
        return FleetState(now_ms, counts, licenses, (), now_ms)


@dataclass
class StandIn:
    """Plane, Store and Announcer in one."""

    ca: Authority = field(default_factory=Authority)
    hosts: dict[str, HostRow] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)
    tokens: dict[str, Identity] = field(default_factory=dict)
    revision: int = 0
    stored_revision: int = 0
    objects: dict[tuple[Kind, str], CatalogObject] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)
    manifests_signed: int = 0
    server_certificates: int = 0
    progress: dict[str, Progress] = field(default_factory=dict)
    reports: list[tuple[str, Report]] = field(default_factory=list)
    closed_streams: list[str] = field(default_factory=list)
    fleet: int = 0
    problem: str = ""
    failures: int = 0  # so many calls for changes, or for a host, fail
    store_closed: bool = False
    report_gate: threading.Event = field(default_factory=threading.Event)
    held_since: int = -1  # changes since this revision wait for `held_gate`
    held_asked: threading.Event = field(default_factory=threading.Event)
    held_gate: threading.Event = field(default_factory=threading.Event)
    bells: list[Bell] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    money: NoMoney = field(default_factory=NoMoney)
    watch: Fleet = field(default_factory=Fleet)

    def __post_init__(self) -> None:
        self.sealer = Sealer(SigningKey("test", secrets.token_bytes(32)))
        self.report_gate.set()

    # --- what tests do to it

    def enroll_host(self, **labels: str) -> tuple[str, Issued]:
        host_id = str(uuid.uuid4())
        self.hosts[host_id] = HostRow(labels, current=secrets.token_bytes(32))
        return host_id, self.certify(host_id)

    def certify(self, host_id: str, **kwargs: Any) -> Issued:
        issued = self.ca.issue(f"licagent://host/{host_id}", **kwargs)
        self.identities[issued.fingerprint] = Identity(
            Role.HOST,
            host_id,
            host_id,
            HostStatus.ACTIVE,
            issued.fingerprint,
            issued.key_fingerprint,
        )
        return issued

    def certify_admin(self, role: Role = Role.ADMIN) -> Issued:
        issued = self.ca.issue("licagent://admin/ops")
        self.identities[issued.fingerprint] = Identity(role, "ops")
        return issued

    def put(
        self,
        name: str,
        payload: bytes | None = b"{}",
        kind: Kind = Kind.BINDING,
        scope: Scope = EVERYWHERE,
        *,
        ring: bool = True,
    ) -> int:
        """One change, one revision."""
        with self.lock:
            self.stored_revision += 1
            revision = self.stored_revision
            old = self.objects.pop((kind, name), None)
            if payload is None:
                scope = old.scope if old else scope
            else:
                self.objects[kind, name] = CatalogObject(kind, name, revision, payload, scope=scope)
            if old is not None and old.scope != scope:
                self.changes.append(_Change(revision, kind, name, old.scope))
            self.changes.append(_Change(revision, kind, name, scope))
        if ring:
            self.ring()
        return revision

    def change_host(self, host_id: str, **fields: Any) -> None:
        self.fleet += 1
        row = self.hosts[host_id]
        for name, value in fields.items():
            setattr(row, name, value)
        row.sequence += 1
        row.changed_at = self.fleet
        self.ring()

    def ring(self) -> None:
        for bell in list(self.bells):
            bell.loop.call_soon_threadsafe(bell.event.set)

    # --- Store and Announcer

    @property
    def announcer(self) -> StandIn:
        return self

    async def listen(self) -> Bell:
        bell = Bell(asyncio.Event(), asyncio.get_running_loop())
        self.bells.append(bell)
        return bell

    def close(self) -> None:
        self.store_closed = True

    # --- Plane

    def authenticate(self, fingerprint: str) -> Identity:
        found = self.identities.get(fingerprint)
        if found is None:
            raise Unauthenticated("There is no such certificate", "Enrol")
        if found.host_id:
            return replace(found, status=self.hosts[found.host_id].status)
        return found

    def authenticate_token(self, token: str) -> Identity:
        if token not in self.tokens:
            raise Unauthenticated("There is no such token", "Ask for one")
        return self.tokens[token]

    def open_stream(self, host_id: str, counter: bytes) -> CounterResult:
        row = self.hosts[host_id]
        if counter not in (row.current, row.pending or row.current):
            self.change_host(host_id, status=HostStatus.CLONED)
            return CounterResult(CounterVerdict.CLONED, b"")
        row.current, row.pending = counter, secrets.token_bytes(32)
        return CounterResult(CounterVerdict.ACCEPTED, row.pending)

    def keep_counter(self, host_id: str, counter: bytes) -> CounterVerdict:
        row = self.hosts[host_id]
        if counter not in (row.current, row.pending):
            self.change_host(host_id, status=HostStatus.CLONED)
            return CounterVerdict.CLONED
        row.current, row.pending = counter, b""
        return CounterVerdict.ACCEPTED

    def close_stream(self, host_id: str) -> None:
        self.closed_streams.append(host_id)

    def host_state(self, host_id: str) -> HostState:
        self._fail()
        row = self.hosts[host_id]
        message = common_pb2.Assignment(host_id=host_id, labels=row.labels, sequence=row.sequence)
        seal = self.sealer.seal(SealPurpose.ASSIGNMENT, message.SerializeToString())
        return HostState(host_id, row.status, row.labels, row.view, row.sequence, seal)

    def fleet_changes(self, cursor: int | None) -> FleetChanges:
        if cursor is None:
            return FleetChanges(self.fleet, ())
        found = [name for name, row in self.hosts.items() if row.changed_at > cursor]
        return FleetChanges(self.fleet, tuple(found))

    def record_progress(self, progress: Sequence[Progress]) -> None:
        self.progress.update({one.host_id: one for one in progress})

    def lease(self, host_id: str, key_fingerprint: bytes, boot_id: str, nonce: bytes) -> Seal:
        if self.hosts[host_id].status is not HostStatus.ACTIVE:
            raise PlaneError(ExitCode.REFUSED, "The host is draining", "Ask")
        bundle = sync_pb2.LeaseBundle(
            host_id=host_id, key_fingerprint=key_fingerprint, boot_id=boot_id, nonce=nonce
        )
        return self.sealer.seal(SealPurpose.LEASE, bundle.SerializeToString())

    def refresh(self) -> HeadCheck:
        with self.lock:
            if not self.problem:
                self.revision = self.stored_revision
            return HeadCheck(self.revision, not self.problem, self.problem)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise PlaneError(ExitCode.BUSY, "The database went away", "Wait")

    def view_changes(self, view: View, since: int) -> ViewDelta:
        self._fail()
        if since == self.held_since:
            self.held_asked.set()
            self.held_gate.wait(30)
        with self.lock:
            live = {
                key: one
                for key, one in self.objects.items()
                if one.scope.visible_in(view) and one.revision <= self.revision
            }
            digest = digest_of((key[0], key[1], one.payload) for key, one in live.items())
            reset = not 0 < since <= self.revision
            if reset:
                found = list(live.values())
            else:
                touched = {
                    (one.kind, one.name): one
                    for one in self.changes
                    if since < one.revision <= self.revision and one.scope.visible_in(view)
                }
                found = [
                    live.get(key) or CatalogObject(key[0], key[1], one.revision, b"", True)
                    for key, one in touched.items()
                ]
            return ViewDelta(
                view,
                0 if reset else since,
                self.revision,
                reset,
                tuple(found),
                digest,
                len(live),
            )

    def sign_manifest(self, view: View, revision: int, digest: bytes, count: int) -> Seal:
        with self.lock:
            self.manifests_signed += 1
        message = sync_pb2.SnapshotManifest(revision=revision, digest=digest, objects=count)
        return self.sealer.seal(SealPurpose.SNAPSHOT, message.SerializeToString())

    is_put_back = False

    def roots_changed_ms(self) -> int:
        return 0

    def server_credentials(self, names: Sequence[str]) -> ServerCredentials:
        self.server_certificates += 1
        made = self.ca.issue("", [*names, "localhost"])
        end_ms = int((time.time() + 3600) * 1000)
        return ServerCredentials(made.key_pem, made.chain_pem, self.ca.pem, end_ms)

    def record_report(self, host_id: str, report: Report) -> None:
        self.report_gate.wait(30)
        self.reports.append((host_id, report))

    def list_hosts(self, actor: Any, labels: Mapping[str, str], page: Any) -> Page[Any]:
        with contextlib.suppress(AttributeError):
            if actor.role is Role.HOST:
                raise AssertionError("a host came as far as the service")
        return Page((), "")

    def get_host(self, actor: Any, host: str) -> Any:
        raise PlaneError(ExitCode.NOT_FOUND, f"There is no host {host}", "List them")
