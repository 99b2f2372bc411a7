# SPDX-License-Identifier: Apache-2.0
"""A host's side of the control plane straight from the .proto files: no kernel, no agent code.

The bench runs thousands of them in a few processes, tests use them as hostile or broken hosts.
Each has a key, a certificate and a TLS connection of its own, as real hosts have.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from licapi.control.v1 import (
    common_pb2,
    enrollment_pb2,
    enrollment_pb2_grpc,
    sync_pb2,
    sync_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PREFIX: Final = "licjoin1."

# One connection an agent: channels with the same arguments would share one otherwise.
OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, slots=True)
class Join:
    """What a join token says."""

    token_id: str
    secret: str
    public: str
    control: str
    ca_pem: bytes

    @classmethod
    def parse(cls, text: str) -> Join:
        """Read a join token; it is one string, `licjoin1.` and base64url of JSON."""
        body = text.strip().removeprefix(PREFIX)
        found: dict[str, str] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        ca = found["ca"]
        der = base64.urlsafe_b64decode(ca.translate(_TO_URL) + "=" * (-len(ca) % 4))
        return cls(
            found["id"], found["secret"], found["public"], found["control"], _certificate_pem(der)
        )


_TO_URL: Final = str.maketrans("+/", "-_")


def _certificate_pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a host keeps: its key, certificate and the newest counter."""

    host_id: str
    key_pem: bytes
    chain_pem: bytes
    ca_pem: bytes
    counter: bytes
    control: str
    trust: bytes = b""
    view: tuple[str, str, str, str] = ("", "", "", "")
    changed: bool = True

    @classmethod
    def read(cls, text: str) -> Identity:
        """From JSON of `write`."""
        found: dict[str, Any] = json.loads(text)
        raw = {"key_pem", "chain_pem", "ca_pem", "counter", "trust"}
        return cls(
            **{
                name: base64.b64decode(value) if name in raw else value
                for name, value in found.items()
            }
            | {"view": tuple(found["view"])}
        )

    def write(self) -> str:
        """As JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(
            {
                name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
                for name, value in values.items()
            }
        )

    def save(self, path: Path) -> None:
        """To a file."""
        path.write_text(self.write(), encoding="ascii")

    def credentials(self) -> grpc.ChannelCredentials:
        """Mutual TLS as this host."""
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.chain_pem)


def make_key() -> ec.EllipticCurvePrivateKey:
    """A host's key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As PKCS #8."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def make_csr(key: ec.EllipticCurvePrivateKey, name: str = "host") -> bytes:
    """A certificate request, DER."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def target(address: str) -> str:
    """A gRPC target that needs no resolver for an address of numbers."""
    host, _, _port = address.rpartition(":")
    return f"ipv4:{address}" if host.replace(".", "").isdigit() else address


def public_channel(join: Join) -> grpc.aio.Channel:
    """To the listener that asks for no client certificate."""
    return grpc.aio.secure_channel(
        target(join.public), grpc.ssl_channel_credentials(join.ca_pem), options=list(OPTIONS)
    )


async def enroll(
    join: Join,
    *,
    hostname: str = "simulated",
    machine_id: str = "",
    key: ec.EllipticCurvePrivateKey | None = None,
    channel: grpc.aio.Channel | None = None,
) -> Identity:
    """Become a host. grpc.aio.AioRpcError where it is refused."""
    key = key or make_key()
    own = channel is None
    channel = channel or public_channel(join)
    try:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        answer = await stub.Enroll(
            enrollment_pb2.EnrollRequest(
                token_id=join.token_id,
                token_secret=join.secret,
                csr=make_csr(key),
                machine=enrollment_pb2.Machine(
                    hostname=hostname,
                    machine_id=machine_id or uuid.uuid4().hex,
                    boot_id=str(uuid.uuid4()),
                    agent_version="0.0-simulated",
                    kernel_release=os.uname().release,
                ),
            ),
            timeout=60,
        )
    finally:
        if own:
            await channel.close()
    return from_response(answer, key_pem(key), join.control)


def from_response(answer: enrollment_pb2.EnrollResponse, pem: bytes, control: str) -> Identity:
    """The identity that an answer of Enrollment gives."""
    assignment = common_pb2.Assignment.FromString(answer.assignment.payload)
    labels = assignment.labels
    return Identity(
        host_id=answer.host_id,
        key_pem=pem,
        chain_pem=b"".join(_certificate_pem(der) for der in answer.certificate_chain),
        ca_pem=b"".join(_certificate_pem(der) for der in answer.ca_certificates),
        counter=answer.counter,
        control=answer.control_address or control,
        trust=answer.trust,
        view=(
            labels.get("org", ""),
            labels.get("project", ""),
            labels.get("environment", ""),
            labels.get("region", ""),
        ),
        changed=answer.changed,
    )


@dataclass(slots=True)
class Held:
    """What a simulated host has in its tables."""

    revision: int = 0
    digest: bytes = b""
    objects: dict[tuple[int, str], bytes] = field(default_factory=dict)
    revoked: dict[str, int] = field(default_factory=dict)
    """Name of a statement -> CLOCK_MONOTONIC, ns, of its arrival."""
    synced_ns: int = 0
    """When the first delta was complete."""
    leases: int = 0


class Peer:
    """One host's stream: connect, say Hello, apply what comes, acknowledge it."""

    def __init__(
        self,
        identity: Identity,
        *,
        held: Held | None = None,
        keep_payloads: bool = True,
        on_message: Callable[[Peer, sync_pb2.ServerMessage], None] | None = None,
    ) -> None:
        self.identity = identity
        self.held = held or Held()
        self.keep_payloads = keep_payloads
        self.on_message = on_message
        self.boot_id = str(uuid.uuid4())
        self.notices: list[tuple[int, str, int]] = []
        self.received_bytes = 0
        self.messages = 0
        self._parts: list[common_pb2.Object] = []
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None

    # --- the stream

    async def open(
        self, *, credentials: grpc.ChannelCredentials | None = None, address: str = ""
    ) -> None:
        """Open the connection and the stream; no Hello yet."""
        self._channel = grpc.aio.secure_channel(
            target(address or self.identity.control),
            credentials or self.identity.credentials(),
            options=list(OPTIONS),
        )
        self._call = sync_pb2_grpc.SyncStub(self._channel).Stream()

    async def close(self) -> None:
        """End the stream and the connection."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def send(self, **message: Any) -> None:
        """One message of the host: `send(ack=Ack(...))`."""
        await self._call.write(sync_pb2.AgentMessage(**message))

    async def receive(self, timeout_s: float = 30.0) -> sync_pb2.ServerMessage | None:
        """The next message; None at the stream's end. AioRpcError with its status if it failed."""
        found = await asyncio.wait_for(self._call.read(), timeout_s)
        if found is grpc.aio.EOF:
            return None
        self.messages += 1
        self.received_bytes += found.ByteSize()
        return found

    async def hello(self, **changes: Any) -> None:
        """Say who we are and what we have."""
        org, project, environment, region = self.identity.view
        fields: dict[str, Any] = {
            "revision": self.held.revision,
            "view": common_pb2.View(
                org=org, project=project, environment=environment, region=region
            ),
            "digest": self.held.digest,
            "counter": self.identity.counter,
            "boot_id": self.boot_id,
            "agent_version": "0.0-simulated",
            **changes,
        }
        await self.send(hello=sync_pb2.Hello(**fields))

    async def request_leases(self) -> bytes:
        """Ask for leases; the nonce of the request."""
        nonce = os.urandom(16)
        await self.send(lease_request=sync_pb2.LeaseRequest(nonce=nonce, boot_id=self.boot_id))
        return nonce

    # --- what a host does with what comes

    async def handle(self, message: sync_pb2.ServerMessage) -> None:
        """Apply a message and answer it, as a host that takes everything does."""
        kind = message.WhichOneof("message")
        if kind == "welcome":
            self.identity = replace(self.identity, counter=message.welcome.counter)
            await self.send(counter_kept=sync_pb2.CounterKept(counter=message.welcome.counter))
        elif kind == "revocations":
            now_ns = time.monotonic_ns()
            for each in message.revocations.objects:
                self.held.revoked.setdefault(each.name, now_ns)
            await self._ack(message.nonce)
        elif kind == "delta":
            await self._delta(message.nonce, message.delta)
        elif kind == "leases":
            bundle = sync_pb2.LeaseBundle.FromString(message.leases.payload)
            self.held.leases = len(bundle.leases)
        elif kind == "assignment":
            await self._ack(message.nonce)
        elif kind == "notice":
            notice = message.notice
            self.notices.append((notice.code, notice.detail, notice.retry_after_ms))
        if self.on_message is not None:
            self.on_message(self, message)

    async def _delta(self, nonce: int, delta: sync_pb2.Delta) -> None:
        self._parts.extend(delta.objects)
        if delta.more:
            return
        if delta.reset:
            self.held.objects.clear()
        for each in self._parts:
            key = (each.kind, each.name)
            if each.removed:
                self.held.objects.pop(key, None)
            else:
                self.held.objects[key] = each.payload if self.keep_payloads else b""
        self._parts.clear()
        manifest = sync_pb2.SnapshotManifest.FromString(delta.manifest.payload)
        self.held.revision, self.held.digest = delta.to_revision, manifest.digest
        self.held.synced_ns = self.held.synced_ns or time.monotonic_ns()
        await self._ack(nonce)

    async def _ack(self, nonce: int) -> None:
        await self.send(ack=sync_pb2.Ack(nonce=nonce, revision=self.held.revision))

    async def run(self) -> None:
        """Handle messages until the stream ends; AioRpcError where it failed."""
        while (message := await self._next()) is not None:
            await self.handle(message)

    async def _next(self) -> sync_pb2.ServerMessage | None:
        found = await self._call.read()
        if found is grpc.aio.EOF:
            return None
        self.messages += 1
        self.received_bytes += found.ByteSize()
        return found

    async def sync(self, timeout_s: float = 60.0) -> Held:
        """Hello, then handle messages until the first delta is in. The stream stays open."""
        self.held.synced_ns = 0
        await self.hello()
        end = time.monotonic() + timeout_s
        while not self.held.synced_ns:
            message = await self.receive(max(0.1, end - time.monotonic()))
            if message is None:
                raise ConnectionError(f"the stream ended before a delta: {self.notices}")
            await self.handle(message)
            if self.notices:
                raise ConnectionError(f"told to go: {self.notices}")
        return self.held
