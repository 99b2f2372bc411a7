# SPDX-License-Identifier: Apache-2.0
"""Messages that no host would send: refused with a status, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import warnings
from collections.abc import Awaitable

import grpc
import pytest
from tests.bench.control_peer import (
    OPTIONS,
    Join,
    Peer,
    make_csr,
    make_key,
    public_channel,
    target,
)
from tests.system.harness.controlplane import ControlPlane
from tests.system.harness.peers import joined, refused, resource

from licapi.control.v1 import enrollment_pb2, enrollment_pb2_grpc, sync_pb2, sync_pb2_grpc

BROKEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
"""Statuses of a server that did not foresee it."""


async def status_of(call: Awaitable[object]) -> grpc.StatusCode:
    """How a call ended."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


JUNK = (
    "",
    "' OR 1=1 --",
    "'; DROP TABLE hosts; --",
    "../../../../etc/passwd",
    "\x00\x01",
    "ä" * 3000,
    "a" * 300_000,
    "%s%n{0}",
    "\u202e\ufeff",
)


async def test_strange_words_in_every_field_of_enrolment(plane: ControlPlane) -> None:
    join = Join.parse(await asyncio.to_thread(lambda: plane.join(uses=100)))
    channel = public_channel(join)
    stub = enrollment_pb2_grpc.EnrollmentStub(channel)
    good = {"token_id": join.token_id, "token_secret": join.secret}
    try:
        for junk in JUNK:
            machine = enrollment_pb2.Machine(
                hostname=junk, machine_id=junk, boot_id=junk, agent_version=junk
            )
            for fields in (
                {"token_id": junk, "token_secret": junk, "csr": junk.encode()},
                {**good, "csr": junk.encode()},
                {**good, "csr": os.urandom(500)},
                {**good, "csr": make_csr(make_key(), (junk or "x")[:20].replace("\0", "0"))},
            ):
                request = enrollment_pb2.EnrollRequest(**fields, machine=machine)
                assert await status_of(stub.Enroll(request, timeout=30)) not in BROKEN, junk[:30]
    finally:
        await channel.close()
    # It still serves, and nothing was lost.
    await asyncio.to_thread(plane.hosts)
    assert await refused(Peer(await joined(plane))) == "welcome"


async def test_malformed_and_oversized_messages_end_the_stream_only(plane: ControlPlane) -> None:
    well, ill = Peer(await joined(plane)), await joined(plane)
    await well.open()
    try:
        await well.sync()
        strange = (
            {"ack": sync_pb2.Ack(nonce=1 << 60, revision=1 << 63)},
            {"nack": sync_pb2.Nack(nonce=7, reason=99, detail="x" * 100_000)},  # type: ignore[arg-type]
            {"lease_request": sync_pb2.LeaseRequest(nonce=b"", boot_id="'; --")},
            {"counter_kept": sync_pb2.CounterKept(counter=b"x" * 100_000)},
            {"hello": sync_pb2.Hello(counter=b"", boot_id="x" * 100_000)},
            {"hello": sync_pb2.Hello(counter=os.urandom(5 << 20))},
            {},
        )
        codes: list[grpc.StatusCode] = []
        for message in strange:
            for greeted in (False, True):
                peer = Peer(ill)
                await peer.open()
                try:
                    if greeted:
                        await peer.sync()
                    await peer.send(**message)
                    while await peer.receive(3) is not None:
                        pass
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code())
                except (TimeoutError, ConnectionError, asyncio.InvalidStateError):
                    pass  # it says nothing to that, or has ended already
                finally:
                    ill = peer.identity
                    await peer.close()
        made = await asyncio.to_thread(plane.apply, resource("after-all"))
        while well.held.revision < made["revision"]:
            found = await well.receive()
            assert found is not None
            await well.handle(found)
    finally:
        await well.close()
    assert not BROKEN & set(codes) - {grpc.StatusCode.UNAVAILABLE}, codes
    assert plane.process is not None
    assert plane.process.poll() is None


async def test_a_key_of_another_kind_gets_no_certificate(plane: ControlPlane) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    join = Join.parse(await asyncio.to_thread(plane.join))
    channel = public_channel(join)
    stub = enrollment_pb2_grpc.EnrollmentStub(channel)
    try:
        for key in (
            rsa.generate_private_key(65537, 2048),
            ec.generate_private_key(ec.SECP384R1()),
        ):
            builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
            csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Enroll(
                    enrollment_pb2.EnrollRequest(
                        token_id=join.token_id, token_secret=join.secret, csr=csr
                    )
                )
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await channel.close()


async def test_half_open_connections_and_streams_keep_nobody_out(plane: ControlPlane) -> None:
    """Hundreds that never finish a handshake, and streams that never say Hello."""
    silent = await joined(plane)
    host, _, port = plane.control.rpartition(":")
    writers = []
    channels = [
        grpc.aio.secure_channel(
            target(plane.control), silent.credentials(), options=[*OPTIONS, ("nr", number)]
        )
        for number in range(30)
    ]
    calls: list[grpc.aio.StreamStreamCall] = []
    try:
        for _ in range(400):
            _, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
        calls = [sync_pb2_grpc.SyncStub(channel).Stream() for channel in channels * 20]
        await asyncio.gather(*(channel.channel_ready() for channel in channels[:10]))
        peer = Peer(await joined(plane))
        await peer.open()
        try:
            await peer.sync()
            made = await asyncio.to_thread(plane.apply, resource("through-the-crowd"))
            while peer.held.revision < made["revision"]:
                message = await peer.receive()
                assert message is not None
                await peer.handle(message)
        finally:
            await peer.close()
    finally:
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()
        for writer in writers:
            writer.close()
    assert plane.process is not None
    assert plane.process.poll() is None


def handshake(address: str, version: ssl.TLSVersion) -> str:
    """The version that a server agrees to, or the error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        try:
            with context.wrap_socket(sock) as wrapped:
                return str(wrapped.version())
        except ssl.SSLError as error:
            return f"refused: {error.reason}"


def test_nothing_older_than_tls_1_3(plane: ControlPlane) -> None:
    for address in (plane.control, plane.public):
        assert handshake(address, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert handshake(address, ssl.TLSVersion.TLSv1_2).startswith("refused")
