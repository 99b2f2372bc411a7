# SPDX-License-Identifier: Apache-2.0
"""Hosts written straight from the .proto files, against a control plane under test."""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.bench.control_peer import Identity, Join, Peer, enroll, make_csr
from tests.system.harness.controlplane import ControlPlane, Document

from licapi.control.v1 import enrollment_pb2, sync_pb2

REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def resource(name: str = "db", cidr: str = "192.0.2.7/32", **scope: object) -> Document:
    where = {"cidr": cidr, "ports": ["443"], "protocol": "tcp"}
    table = {"name": name, "kind": "network", "mode": "enforce", "destinations": [where]}
    return Document("resource", {**table, "scope": scope} if scope else table)


async def joined(plane: ControlPlane, **labels: str) -> Identity:
    return await enroll(Join.parse(await asyncio.to_thread(lambda: plane.join(**labels))))


async def refused(
    peer: Peer, credentials: grpc.ChannelCredentials | None = None
) -> grpc.StatusCode | str:
    """What becomes of a stream that says Hello: a status, or a notice's code."""
    try:
        await peer.open(credentials=credentials)
        await peer.hello()
        while (message := await peer.receive(15)) is not None:
            if message.HasField("notice"):
                return sync_pb2.Notice.Code.Name(message.notice.code)
            if message.HasField("welcome"):
                return "welcome"
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await peer.close()
    return "ended"


def private_key(identity: Identity) -> ec.EllipticCurvePrivateKey:
    """The key of a host."""
    key = serialization.load_pem_private_key(identity.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def pem(chain: tuple[bytes, ...]) -> bytes:
    """Certificates as text."""
    found = (x509.load_der_x509_certificate(der) for der in chain)
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in found)


def reenroll_request(
    identity: Identity, host_id: str = "", at_unix_ms: int = 0
) -> enrollment_pb2.ReenrollRequest:
    """A signed request for a new certificate, by the key of `identity`."""
    key, at = private_key(identity), at_unix_ms or int(time.time() * 1000)
    host_id, csr = host_id or identity.host_id, make_csr(private_key(identity))
    words = (b"licagent-reenroll-v1", host_id.encode(), str(at).encode(), csr)
    return enrollment_pb2.ReenrollRequest(
        host_id=host_id,
        csr=csr,
        counter=identity.counter,
        signed_at_unix_ms=at,
        signature=key.sign(b"\0".join(words), ec.ECDSA(hashes.SHA256())),
    )
