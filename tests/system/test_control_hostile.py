# SPDX-License-Identifier: Apache-2.0
"""Hosts and thieves that do not play by the rules, against a real control plane."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest
from tests.bench.control_peer import (
    OPTIONS,
    Identity,
    Join,
    Peer,
    from_response,
    key_pem,
    make_csr,
    make_key,
    public_channel,
    target,
)
from tests.system.harness.controlplane import ControlPlane, binding, license
from tests.system.harness.peers import (
    REFUSALS,
    joined,
    pem,
    reenroll_request,
    refused,
    resource,
)

from licapi.control.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    enrollment_pb2,
    enrollment_pb2_grpc,
    sync_pb2,
)
from licplane.service.requests import EnrollRequest, Machine

MakePlane = Callable[..., ControlPlane]


async def test_a_host_that_plays_by_the_rules_is_served(plane: ControlPlane) -> None:
    """The others are refused for what is wrong with them, and for nothing else."""
    await asyncio.to_thread(plane.apply, resource(), binding(), license())
    peer = Peer(await joined(plane))
    await peer.open()
    try:
        held = await peer.sync()
        assert {name for _, name in held.objects} >= {"db", "acme-db"}
    finally:
        await peer.close()


async def test_certificates_that_do_not_count(plane: ControlPlane, make_plane: MakePlane) -> None:
    identity = await joined(plane)
    assert await refused(Peer(identity)) == "welcome"
    # Signed by another control plane's CA.
    other = await asyncio.to_thread(make_plane)
    foreign = await joined(other)
    theirs = replace(foreign, ca_pem=identity.ca_pem, control=plane.control)
    assert await refused(Peer(theirs)) in {grpc.StatusCode.UNAVAILABLE, *REFUSALS}
    # None at all.
    nameless = grpc.ssl_channel_credentials(identity.ca_pem)
    assert await refused(Peer(identity), nameless) in {grpc.StatusCode.UNAVAILABLE, *REFUSALS}
    # Of a host that was evicted: the certificate is good for hours, the row is not.
    await asyncio.to_thread(plane.do, "host", "evict", identity.host_id)
    assert await refused(Peer(identity)) in {*REFUSALS, "CODE_EVICTED"}


async def test_an_expired_certificate_is_refused(plane: ControlPlane) -> None:
    """And the proof of its key, once and fresh, gets the host a new one."""
    joining = Join.parse(await asyncio.to_thread(plane.join))
    key = make_key()

    def brief() -> Identity:
        token = (joining.token_id, joining.secret)
        request = EnrollRequest(*token, make_csr(key), Machine("brief"))
        with plane.opened(host_certificate_ttl_s=1) as service:
            made = service.enroll(request)
        return Identity(
            host_id=made.host_id,
            key_pem=key_pem(key),
            chain_pem=pem(made.certificate_chain),
            ca_pem=pem(made.ca_certificates),
            counter=made.counter,
            control=plane.control,
        )

    ended = await asyncio.to_thread(brief)
    await asyncio.sleep(2)
    assert await refused(Peer(ended)) in {grpc.StatusCode.UNAVAILABLE, *REFUSALS}
    channel = public_channel(joining)
    try:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        stale = reenroll_request(ended, at_unix_ms=int(time.time() * 1000) - 600_000)
        fresh = reenroll_request(ended)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Reenroll(stale, timeout=30)
        assert error.value.code() in REFUSALS
        answer = await stub.Reenroll(fresh, timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Reenroll(fresh, timeout=30)  # a recorded one
        assert error.value.code() in REFUSALS
    finally:
        await channel.close()
    again = from_response(answer, ended.key_pem, plane.control)
    assert again.host_id == ended.host_id
    assert await refused(Peer(again)) == "welcome"


async def test_a_host_is_no_administrator(plane: ControlPlane) -> None:
    identity = await joined(plane)
    channel = grpc.aio.secure_channel(
        target(plane.control), identity.credentials(), options=list(OPTIONS)
    )
    stub = admin_pb2_grpc.AdminStub(channel)
    calls = (
        stub.ListHosts(admin_pb2.ListHostsRequest()),
        stub.ListObjects(admin_pb2.ListObjectsRequest(kind="license")),
        stub.GetHost(admin_pb2.GetHostRequest(host=identity.host_id)),
        stub.CreateJoinToken(admin_pb2.CreateJoinTokenRequest(uses_max=1, ttl_s=60)),
        stub.SetLicenseState(admin_pb2.SetLicenseStateRequest(license="x", action="revoke")),
        stub.VerifyAudit(admin_pb2.VerifyAuditRequest()),
    )
    try:
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code() in REFUSALS
    finally:
        await channel.close()
    # Nor is anybody on the public listener, whatever the token looks like.
    channel = public_channel(Join.parse(await asyncio.to_thread(plane.join)))
    stub = admin_pb2_grpc.AdminStub(channel)
    try:
        for token in ("", "Bearer ", "Bearer x' OR '1'='1", "Bearer " + "A" * 5000, "Basic eA=="):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.ListHosts(
                    admin_pb2.ListHostsRequest(), metadata=[("authorization", token)]
                )
            assert error.value.code() in {*REFUSALS, grpc.StatusCode.RESOURCE_EXHAUSTED}
    finally:
        await channel.close()


async def test_a_tenant_sees_nothing_of_another(plane: ControlPlane) -> None:
    acme, other = await joined(plane, org="acme"), await joined(plane, org="other")
    scoped = {"org": "acme"}
    applied = await asyncio.to_thread(
        plane.apply,
        resource("acme-only", **scoped),
        binding("acme-lic", name="acme-bind", scope=scoped),
        license("acme-lic", "acme-only"),
    )
    peers = {"acme": Peer(acme), "other": Peer(other), "liar": Peer(other)}
    seen: dict[str, set[str]] = {}
    revisions = {}
    for name, peer in peers.items():
        if name == "liar":
            peer.identity = peers["other"].identity  # the same host, with its newest counter
        await peer.open()
        try:
            if name == "liar":  # says that it is of the other view; labels decide
                await peer.hello(view=common_pb2.View(org="acme"))
                while not peer.held.synced_ns:
                    message = await peer.receive()
                    assert message is not None
                    await peer.handle(message)
            else:
                await peer.sync()
                while name == "acme" and peer.held.revision < applied["revision"]:
                    message = await peer.receive()
                    assert message is not None
                    await peer.handle(message)
            seen[name] = {each for _, each in peer.held.objects}
            revisions[name] = peer.held.revision
        finally:
            await peer.close()
    ours = {"acme-only", "acme-lic", "acme-bind"}
    assert ours <= seen["acme"]
    assert not ours & seen["other"]
    assert not ours & seen["liar"]
    # Nor does a change, a removal or a revocation of it show.
    peer = Peer(peers["liar"].identity)
    await peer.open()
    try:
        await peer.sync()
        before = peer.received_bytes
        await asyncio.to_thread(plane.do, "license", "revoke", "acme-lic")
        await asyncio.to_thread(plane.do, "binding", "delete", "acme-bind")
        visible = await asyncio.to_thread(plane.apply, resource("for-all", "192.0.2.8/32"))
        texts = []
        while peer.held.revision < visible["revision"]:
            message = await peer.receive()
            assert message is not None
            texts.append(message.SerializeToString())
            await peer.handle(message)
        assert peer.received_bytes > before
        assert not any(b"acme" in text for text in texts)
        assert "for-all" in {each for _, each in peer.held.objects}
        # A lease names no license of others.
        await peer.request_leases()
        while (message := await peer.receive()) is not None:
            if message.HasField("leases"):
                bundle = sync_pb2.LeaseBundle.FromString(message.leases.payload)
                assert list(bundle.leases) == []
                assert bundle.host_id == other.host_id
                break
    finally:
        await peer.close()


async def test_a_host_cannot_speak_for_another(plane: ControlPlane) -> None:
    mine, theirs = await joined(plane), await joined(plane)
    # Re-enrolling as the other with one's own key.
    request = reenroll_request(replace(mine, counter=theirs.counter), theirs.host_id)
    channel = public_channel(Join.parse(await asyncio.to_thread(plane.join)))
    try:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Reenroll(request, timeout=30)
        unknown = str(uuid.uuid4())
        unsigned = enrollment_pb2.ReenrollRequest.FromString(request.SerializeToString())
        unsigned.host_id = unknown
        with pytest.raises(grpc.aio.AioRpcError) as nobody:
            await stub.Reenroll(unsigned, timeout=30)
    finally:
        await channel.close()
    assert error.value.code() in REFUSALS
    # Whether such a host exists is not told.
    assert nobody.value.code() == error.value.code()
    assert (nobody.value.details() or "").replace(unknown, "") == (
        error.value.details() or ""
    ).replace(theirs.host_id, "")
    # Another's counter: as a clone would.
    peer = Peer(replace(mine, counter=theirs.counter))
    assert await refused(peer) == "CODE_CLONED"
