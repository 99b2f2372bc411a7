# SPDX-License-Identifier: Apache-2.0
"""A control plane of one's own, in this process: its keys, its TLS, and its side of a stream."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from licagent.control import hostkey
from licagent.control.interface import (
    Assignment,
    ControlSettings,
    ControlState,
    NoticeCode,
)
from licagent.control.report import HostReport, HostState
from licagent.control.session import ControlSession
from licagent.domain.catalog import CatalogView, SignedBytes, ViewKey
from licagent.domain.hostidentity import Identity
from licagent.domain.lease import LeaseSet
from licagent.store.catalog import CatalogStore
from licagent.store.identity import IdentityStore
from licagent.store.statedir import StateDir
from licapi.control.v1 import common_pb2, enrollment_pb2, sync_pb2, telemetry_pb2
from lictoken.digest import digest_of
from lictoken.keys import SigningKey
from lictoken.sealed import SealPurpose, seal
from lictoken.trust import TrustedKey, TrustStore

BOOT_ID = "11111111-2222-4333-8444-555555555555"
LABELS = {"org": "acme", "project": "shop", "environment": "prod", "region": "eu"}
S = 1_000_000_000


class Authority:
    """A certification authority for P-256 keys."""

    def __init__(self, name: str = "test root") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.root = self._build(
            self.name, self.key.public_key(), dt.timedelta(days=1), is_root=True
        )
        self.root_der = self.root.public_bytes(serialization.Encoding.DER)

    def host(self, csr: bytes, host_id: str, life: dt.timedelta, age: dt.timedelta) -> bytes:
        """A host's certificate, DER; it began `age` ago and lasts `life` in all."""
        request = x509.load_der_x509_csr(csr)
        return self._build(
            request.subject,
            request.public_key(),
            life,
            names=[x509.UniformResourceIdentifier(f"licagent://host/{host_id}")],
            age=age,
        ).public_bytes(serialization.Encoding.DER)

    def server(self) -> tuple[bytes, bytes]:
        """Key and certificate of a server on this machine, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._build(
            x509.Name([]),
            key.public_key(),
            dt.timedelta(days=1),
            names=[x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
            is_server=True,
        )
        pem = serialization.Encoding.PEM
        return (
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
            certificate.public_bytes(pem),
        )

    def _build(
        self,
        subject: x509.Name,
        public: Any,
        life: dt.timedelta,
        *,
        names: Sequence[x509.GeneralName] = (),
        age: dt.timedelta = dt.timedelta(seconds=10),
        is_root: bool = False,
        is_server: bool = False,
    ) -> x509.Certificate:
        begin = dt.datetime.now(dt.UTC) - age
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + life)
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(names), critical=not list(subject)
            )
            usage = (
                ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
            )
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self.key, hashes.SHA256())


class Model:
    """The control plane's side of the truth: objects, their history, and what is signed."""

    def __init__(self) -> None:
        self.key = SigningKey.create("acme")
        self.view = ViewKey.of(LABELS)
        self.revision = 0
        self.objects: dict[tuple[int, str], tuple[int, bytes]] = {}
        self.history: list[tuple[int, int, str, bytes | None]] = []
        self.signed_sets: dict[int, frozenset[tuple[int, str, bytes]]] = {}
        self.digests: dict[int, bytes] = {}

    @property
    def trust(self) -> bytes:
        return TrustStore([TrustedKey.of(self.key.public_key, "acme")]).to_bytes()

    def live(self) -> frozenset[tuple[int, str, bytes]]:
        return frozenset((kind, name, data) for (kind, name), (_, data) in self.objects.items())

    def change(self, *changes: tuple[int, str, bytes | None]) -> int:
        """One transaction; None as the payload removes. The revision it made."""
        self.revision += 1
        for kind, name, payload in changes:
            if payload is None:
                self.objects.pop((kind, name), None)
            else:
                self.objects[kind, name] = (self.revision, payload)
            self.history.append((self.revision, kind, name, payload))
        self.signed_sets[self.revision] = self.live()
        self.digests[self.revision] = digest_of(self.live())
        return self.revision

    def sealed(self, purpose: SealPurpose, message: Any, key: SigningKey | None = None) -> Any:
        found = seal(purpose, message.SerializeToString(), key or self.key)
        return common_pb2.Sealed(payload=found.payload, kid=found.kid, signature=found.signature)

    def manifest(self, key: SigningKey | None = None, view: ViewKey | None = None) -> Any:
        view = view or self.view
        message = sync_pb2.SnapshotManifest(
            view=common_pb2.View(
                org=view.org,
                project=view.project,
                environment=view.environment,
                region=view.region,
            ),
            revision=self.revision,
            digest=digest_of(self.live()),
            objects=len(self.objects),
        )
        return self.sealed(SealPurpose.SNAPSHOT, message, key)

    def parts(self, since: int, part_size: int = 1000, **more: Any) -> list[sync_pb2.Delta]:
        """The delta from a revision, or a reset (0), in parts."""
        if since:
            newest: dict[tuple[int, str], tuple[int, bytes | None]] = {}
            for revision, kind, name, payload in self.history:
                if revision > since:
                    newest[kind, name] = (revision, payload)
        else:
            newest = dict(self.objects)
        objects = [
            common_pb2.Object(
                kind=kind, name=name, revision=revision, removed=data is None, payload=data or b""
            )
            for (kind, name), (revision, data) in newest.items()
        ]
        cuts = range(0, max(len(objects), 1), part_size)
        parts = [
            sync_pb2.Delta(
                from_revision=since,
                to_revision=self.revision,
                reset=since == 0,
                more=True,
                objects=objects[at : at + part_size],
            )
            for at in cuts
        ]
        parts[-1].more = False
        parts[-1].manifest.CopyFrom(self.manifest(**more))
        return parts

    def assignment(
        self, host_id: str, sequence: int = 1, labels: dict[str, str] | None = None
    ) -> Any:
        return self.sealed(
            SealPurpose.ASSIGNMENT,
            common_pb2.Assignment(
                host_id=host_id,
                labels=LABELS if labels is None else labels,
                sequence=sequence,
                status=common_pb2.HOST_STATUS_ACTIVE,
            ),
        )

    def leases(self, request: Any, identity: Identity, *names: str, **more: Any) -> Any:
        fields = {
            "host_id": identity.host_id,
            "key_fingerprint": hostkey.fingerprint(identity.key_pem),
            "boot_id": request.boot_id,
            "nonce": request.nonce,
            "ttl_ms": 600_000,
            "leases": [
                sync_pb2.Lease(license=name, number=at, generation=1)
                for at, name in enumerate(names, 1)
            ],
        }
        return self.sealed(SealPurpose.LEASE, sync_pb2.LeaseBundle(**{**fields, **more}))


@dataclass
class Kernel:
    """ControlCallbacks that remember. `refuse` and friends make them fail."""

    objects: frozenset[tuple[int, str, bytes]] = frozenset()
    revisions: list[int] = field(default_factory=list)
    revoked: list[bytes] = field(default_factory=list)
    leases: list[LeaseSet] = field(default_factory=list)
    assignments: list[Assignment] = field(default_factory=list)
    notices: list[NoticeCode] = field(default_factory=list)
    states: list[ControlState] = field(default_factory=list)
    refuse: Exception | None = None
    refuse_revocations: Exception | None = None
    gate: asyncio.Event | None = None
    at_gate: asyncio.Event = field(default_factory=asyncio.Event)
    log: list[str] = field(default_factory=list)

    async def apply_revocations(self, tokens: Sequence[bytes]) -> None:
        self.log.append("revocations")
        self.revoked.extend(tokens)
        if self.refuse_revocations is not None:
            raise self.refuse_revocations

    async def apply_catalog(self, view: CatalogView) -> None:
        if self.gate is not None:
            self.at_gate.set()
            await self.gate.wait()
        if self.refuse is not None:
            raise self.refuse
        self.log.append(f"catalog {view.revision}")
        self.revisions.append(view.revision)
        self.objects = frozenset((e.kind, e.name, e.payload) for e in view.objects.values())

    async def apply_leases(self, leases: LeaseSet) -> None:
        self.log.append("leases")
        self.leases.append(leases)

    async def apply_assignment(self, assignment: Assignment) -> None:
        self.log.append(f"assignment {assignment.sequence}")
        self.assignments.append(assignment)

    async def report(self) -> HostReport:
        state = HostState("observe", "1", BOOT_ID, "web-1", "6.1.0", 1, 1)
        return HostReport(1, state)

    def notice(self, code: NoticeCode, detail: str) -> None:
        self.notices.append(code)

    def changed(self, state: ControlState) -> None:
        self.states.append(state)


class HostFolder:
    """A host's state folder with an identity in it."""

    def __init__(self, path: Path, model: Model, authority: Authority) -> None:
        self.path = path
        self.model = model
        self.authority = authority
        self.state = StateDir(path)
        self.identities = IdentityStore(self.state)
        self.catalogs = CatalogStore(path / "catalog.db")

    def enrolled(
        self,
        control: str = "127.0.0.1:1",
        public: str = "",
        *,
        life_s: float = 43_200,
        age_s: float = 10,
    ) -> Identity:
        key = hostkey.new_key()
        host_id = str(uuid.uuid4())
        leaf = self.authority.host(
            hostkey.request_for(key),
            host_id,
            dt.timedelta(seconds=life_s),
            dt.timedelta(seconds=age_s),
        )
        assignment = self.model.assignment(host_id)
        identity = Identity(
            key_pem=key,
            host_id=host_id,
            certificate_chain=(leaf,),
            ca_certificates=(self.authority.root_der,),
            trust=self.model.trust,
            assignment=SignedBytes(assignment.payload, assignment.kid, assignment.signature),
            counter=b"\1" * 32,
            control_address=control,
            public_address=public,
            not_after_unix_ms=hostkey.span_of(leaf).not_after_unix_ms,
        )
        self.identities.save(identity)
        return identity

    def reopened(self) -> HostFolder:
        """As after a restart of the agent."""
        self.close()
        return HostFolder(self.path, self.model, self.authority)

    def close(self) -> None:
        self.catalogs.close()
        self.state.close()


SETTINGS = ControlSettings(
    boot_id=BOOT_ID,
    agent_version="1.0",
    backoff_first_ms=20,
    backoff_cap_ms=100,
    keepalive_ms=1_000,
    keepalive_timeout_ms=1_000,
)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def folder(tmp_path: Path, model: Model, authority: Authority) -> Iterator[HostFolder]:
    found = HostFolder(tmp_path / "state", model, authority)
    yield found
    found.close()


class Peer:
    """The server's end of one sync stream."""

    def __init__(self, hello: Any, context: Any) -> None:
        self.hello = hello
        self.context = context
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self.gone = asyncio.Event()
        self._nonce = 0

    async def send(self, **fields: Any) -> int:
        self._nonce += 1
        await self.outgoing.put(sync_pb2.ServerMessage(nonce=self._nonce, **fields))
        return self._nonce

    async def welcome(self, counter: bytes = b"\2" * 32, **more: Any) -> None:
        await self.send(welcome=sync_pb2.Welcome(counter=counter, **more))

    async def receive(self, kind: str) -> Any:
        """The next message of a kind; others before it are passed over."""
        async with asyncio.timeout(20):
            while True:
                message = await self.incoming.get()
                if message.WhichOneof("message") == kind:
                    return getattr(message, kind)

    async def push(self, parts: Sequence[Any]) -> int:
        nonce = 0
        for part in parts:
            nonce = await self.send(delta=part)
        return nonce

    async def end(self, abort: tuple[Any, str] | None = None) -> None:
        await self.outgoing.put(abort)


class Plane:
    """An in-process server: streams are scripted by the test, enrolment by `answer`."""

    def __init__(self, authority: Authority, model: Model) -> None:
        self.authority = authority
        self.model = model
        self.streams: asyncio.Queue[Peer] = asyncio.Queue()
        self.reports: asyncio.Queue[Any] = asyncio.Queue()
        self.pause_ms = 0
        self.calls: list[tuple[str, Any]] = []
        self.answer: Callable[[str, Any], Any] | None = None
        self.port = 0
        self.public_port = 0
        self._servers: list[Any] = []

    @property
    def control(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def public(self) -> str:
        return f"127.0.0.1:{self.public_port}"

    async def start(self) -> None:
        import grpc

        from licapi.control.v1 import enrollment_pb2_grpc, sync_pb2_grpc, telemetry_pb2_grpc

        plane = self

        class Sync(sync_pb2_grpc.SyncServicer):
            async def Stream(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
                first = await anext(aiter(request_iterator))
                peer = Peer(first.hello, context)

                async def read() -> None:
                    async for message in request_iterator:
                        await peer.incoming.put(message)

                reader = asyncio.ensure_future(read())
                await plane.streams.put(peer)
                try:
                    while True:
                        message = await peer.outgoing.get()
                        if message is None:
                            return
                        if isinstance(message, tuple):
                            await context.abort(*message)
                        yield message
                finally:
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)
                    peer.gone.set()

        class Telemetry(telemetry_pb2_grpc.TelemetryServicer):
            async def Report(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
                async for report in request_iterator:
                    await plane.reports.put((context.peer(), report))
                    yield telemetry_pb2.ReportReceipt(
                        sequence=report.sequence, pause_ms=plane.pause_ms
                    )

        class Enrollment(enrollment_pb2_grpc.EnrollmentServicer):
            async def Enroll(self, request: Any, context: Any) -> Any:  # noqa: N802
                return await plane._call("enroll", request, context)

            async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
                return await plane._call("renew", request, context)

            async def Reenroll(self, request: Any, context: Any) -> Any:  # noqa: N802
                return await plane._call("reenroll", request, context)

        key, certificate = self.authority.server()
        root = hostkey.pem_of(self.authority.root_der)
        for is_public in (False, True):
            server = grpc.aio.server(
                options=[
                    ("grpc.http2.min_ping_interval_without_data_ms", 200),
                    ("grpc.keepalive_permit_without_calls", 1),
                ]
            )
            sync_pb2_grpc.add_SyncServicer_to_server(Sync(), server)
            telemetry_pb2_grpc.add_TelemetryServicer_to_server(Telemetry(), server)
            enrollment_pb2_grpc.add_EnrollmentServicer_to_server(Enrollment(), server)
            credentials = grpc.ssl_server_credentials(
                [(key, certificate)],
                root_certificates=None if is_public else root,
                require_client_auth=not is_public,
            )
            port = self.public_port if is_public else self.port
            bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
            await server.start()
            if is_public:
                self.public_port = bound
            else:
                self.port = bound
            self._servers.append(server)

    async def _call(self, name: str, request: Any, context: Any) -> Any:
        import grpc

        self.calls.append((name, request))
        found = self.answer(name, request) if self.answer is not None else None
        if found is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not here")
        if isinstance(found, tuple):
            await context.abort(*found)
        return found

    def response(self, csr: bytes, host_id: str, **more: Any) -> Any:
        """EnrollResponse for a certificate request."""
        life_s = more.pop("life_s", 43_200)
        leaf = self.authority.host(
            csr, host_id, dt.timedelta(seconds=life_s), dt.timedelta(seconds=0)
        )
        fields = {
            "host_id": host_id,
            "certificate_chain": [leaf],
            "ca_certificates": [self.authority.root_der],
            "trust": self.model.trust,
            "assignment": self.model.assignment(host_id),
            "counter": os.urandom(32),
            "changed": True,
            "not_after_unix_ms": hostkey.span_of(leaf).not_after_unix_ms,
            "control_address": self.control,
        }
        return enrollment_pb2.EnrollResponse(**{**fields, **more})

    async def stream(self) -> Peer:
        async with asyncio.timeout(20):
            return await self.streams.get()

    async def stop(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(None)


@pytest.fixture
async def plane(authority: Authority, model: Model) -> AsyncIterator[Plane]:
    found = Plane(authority, model)
    await found.start()
    yield found
    await found.stop()


class Host:
    """A session that runs, on a folder."""

    def __init__(self, folder: HostFolder, kernel: Kernel, **settings: Any) -> None:
        self.folder = folder
        self.kernel = kernel
        self.session = ControlSession(
            folder.identities, folder.catalogs, kernel, replace(SETTINGS, **settings)
        )
        self.booted = self.session.boot()
        self.task = asyncio.ensure_future(self.session.run())

    async def until(self, what: Callable[[], Any]) -> Any:
        """Wait for a condition."""
        async with asyncio.timeout(20):
            while not (found := what()):  # noqa: ASYNC110 -- any condition, nobody's event
                await asyncio.sleep(0.01)
        return found

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def run_host(folder: HostFolder, kernel: Kernel) -> AsyncIterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def start(of: HostFolder | None = None, **settings: Any) -> Host:
        hosts.append(Host(of or folder, kernel, **settings))
        return hosts[-1]

    yield start
    if kernel.gate is not None:
        kernel.gate.set()
    for host in hosts:
        await host.stop()


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Classes for tests that make their own: tests are files, not modules to import from."""
    return SimpleNamespace(
        Authority=Authority,
        HostFolder=HostFolder,
        Kernel=Kernel,
        Model=Model,
        SETTINGS=SETTINGS,
        LABELS=LABELS,
        BOOT_ID=BOOT_ID,
    )
