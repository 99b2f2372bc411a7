# SPDX-License-Identifier: Apache-2.0
"""What peers must not do, and what becomes of them: a status, a count, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.bench.control_peer import Peer
from tests.unit.licplane.api.conftest import DEADLINE_S, Site, Start, eventually
from tests.unit.licplane.api.stand_in import Authority, Issued

from licapi.control.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    sync_pb2,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from licplane.api.settings import Admission, Limits, ServerSettings
from licplane.service.values import HostStatus, Identity, Kind, Role

RAW = "/licapi.control.v1.Sync/Stream"


async def failure(work: Awaitable[Any]) -> grpc.StatusCode:
    """The status with which a call fails."""
    try:
        await work
    except grpc.aio.AioRpcError as error:
        return error.code()
    raise AssertionError("it was served")


async def read_all(peer: Peer) -> None:
    while await peer.receive() is not None:
        pass


async def begin(peer: Peer) -> None:
    await peer.open()
    await peer.hello()
    await read_all(peer)


async def say(call: Any, message: Any) -> None:
    """Say one thing on a stream and hear what comes."""
    await call.write(message)
    while await call.read() is not grpc.aio.EOF:
        pass


async def raw_stream(site: Site, data: bytes, issued: Issued | None) -> grpc.StatusCode:
    """The status of a stream on which these bytes are said."""
    return await failure(say(site.channel(issued).stream_stream(RAW)(), data))


def settings(limits: Limits | None = None, **admission: Any) -> ServerSettings:
    return ServerSettings(
        limits=limits or Limits(), admission=Admission(**admission), stop_grace_s=0.5
    )


async def still_serves(site: Site) -> None:
    """A decent host is served after all that."""
    peer = site.host()
    await peer.open()
    await peer.sync()


# ---------------------------------------------------------------------------------- who


async def test_a_certificate_of_another_authority_is_no_certificate(site: Site) -> None:
    host_id, _ = site.plane.enroll_host()
    forged = Authority().issue(f"licagent://host/{host_id}")
    peer = site.peer(host_id, forged)
    assert await failure(begin(peer)) is grpc.StatusCode.UNAVAILABLE
    assert not site.worker.hub.streams
    await still_serves(site)


async def test_an_expired_certificate_is_refused(site: Site) -> None:
    host_id, _ = site.plane.enroll_host()
    peer = site.peer(host_id, site.plane.certify(host_id, ends_s=-5))
    assert await failure(begin(peer)) is grpc.StatusCode.UNAVAILABLE
    fresh = site.peer(host_id, site.plane.certify(host_id))
    await fresh.open()
    await fresh.sync()


async def test_without_a_certificate_there_is_no_connection(site: Site) -> None:
    assert await raw_stream(site, b"", None) is grpc.StatusCode.UNAVAILABLE


async def test_a_revoked_certificate_is_not_served_though_its_chain_is_good(site: Site) -> None:
    host_id, issued = site.plane.enroll_host()
    peer = site.peer(host_id, issued)
    await peer.open()
    await peer.sync()
    await peer.close()
    del site.plane.identities[issued.fingerprint]
    assert await failure(begin(peer)) is grpc.StatusCode.UNAUTHENTICATED
    assert site.refused("credential") == 1


async def test_a_host_is_nobody_on_admin_whatever_it_names(site: Site) -> None:
    _, mine = site.plane.enroll_host()
    other, _ = site.plane.enroll_host()
    admin = admin_pb2_grpc.AdminStub(site.channel(mine))
    answers = set()
    for host in (other, "00000000-0000-0000-0000-000000000000", "' OR 1=1 --", "../../etc"):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await admin.GetHost(admin_pb2.GetHostRequest(host=host))
        answers.add((failed.value.code(), failed.value.details()))
    assert len(answers) == 1  # what exists and what does not look the same
    assert {code for code, _ in answers} == {grpc.StatusCode.PERMISSION_DENIED}
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await admin.ListHosts(admin_pb2.ListHostsRequest())
    assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_administrator_has_no_stream_and_no_reports(site: Site) -> None:
    ops = site.plane.certify_admin()
    hello = sync_pb2.AgentMessage(hello=sync_pb2.Hello()).SerializeToString()
    assert await raw_stream(site, hello, ops) is grpc.StatusCode.PERMISSION_DENIED
    call: Any = telemetry_pb2_grpc.TelemetryStub(site.channel(ops)).Report()
    said = say(call, telemetry_pb2.HostReport(sequence=1))
    assert await failure(said) is grpc.StatusCode.PERMISSION_DENIED
    renew = enrollment_pb2_grpc.EnrollmentStub(site.channel(ops)).Renew
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await renew(enrollment_pb2.RenewRequest())
    assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_the_public_listener_wants_a_token_and_has_no_streams(site: Site) -> None:
    site.plane.tokens["right"] = Identity(Role.ADMIN, "ops")
    channel = site.channel(public=True)
    admin = admin_pb2_grpc.AdminStub(channel)
    for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "Basic right"),)):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await admin.ListHosts(admin_pb2.ListHostsRequest(), metadata=metadata)
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    await admin.ListHosts(
        admin_pb2.ListHostsRequest(), metadata=(("authorization", "Bearer right"),)
    )
    call: Any = channel.stream_stream(RAW)()
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_public_calls_are_limited_over_all_peers(start: Start) -> None:
    site = await start(settings(Limits(public_failures_a_second=0.001, public_failures_burst=3)))
    admin = admin_pb2_grpc.AdminStub(site.channel(public=True))
    codes = []
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await admin.ListHosts(admin_pb2.ListHostsRequest())
        codes.append(failed.value.code())
    assert codes.count(grpc.StatusCode.UNAUTHENTICATED) == 3
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 2
    assert "retry-after-ms" in dict(failed.value.trailing_metadata() or ())


# ---------------------------------------------------------------------------------- TLS


def handshake(
    site: Site, issued: Issued, tmp_path: Path, newest: ssl.TLSVersion
) -> tuple[str | None, bytes]:
    """The TLS version that is agreed on with a client of at most `newest`, and the peer's DER."""
    pem = tmp_path / "client.pem"
    pem.write_bytes(issued.key_pem + issued.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=site.plane.ca.pem.decode())
    context.load_cert_chain(pem)
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])
    host, port = site.addresses.control.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=20) as raw,
        context.wrap_socket(raw, server_hostname=host) as made,
    ):
        return made.version(), made.getpeercert(binary_form=True) or b""


async def test_tls_1_2_is_refused(site: Site, tmp_path: Path) -> None:
    _, issued = site.plane.enroll_host()
    version, _ = await asyncio.to_thread(handshake, site, issued, tmp_path, ssl.TLSVersion.TLSv1_3)
    assert version == "TLSv1.3"
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(handshake, site, issued, tmp_path, ssl.TLSVersion.TLSv1_2)
    with_rsa = site.plane.ca.issue(
        "licagent://host/x", rsa_key=rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    with pytest.raises(ssl.SSLError):  # it is the server's certificate that counts
        await asyncio.to_thread(handshake, site, with_rsa, tmp_path, ssl.TLSVersion.TLSv1_2)


async def test_the_servers_certificate_is_replaced_while_it_runs(
    site: Site, tmp_path: Path
) -> None:
    peer = site.host()
    await peer.open()
    await peer.sync()
    _, issued = site.plane.enroll_host()

    async def shown() -> bytes:
        newest = ssl.TLSVersion.TLSv1_3
        return (await asyncio.to_thread(handshake, site, issued, tmp_path, newest))[1]

    first = await shown()
    assert await shown() == first
    await site.worker.certificate.renew()
    second = await shown()
    assert second != first
    assert await shown() == second
    await still_serves(site)  # gRPC's own client takes it too
    site.plane.put("news")  # and who was connected stays so
    message = await peer.receive()
    assert message is not None
    assert message.delta.objects[0].name == "news"


# ----------------------------------------------------------------------------- messages


async def test_garbage_is_refused_and_counted(site: Site) -> None:
    _, issued = site.plane.enroll_host()
    sayings = (b"\xff" * 40, b"", os.urandom(500) + b"\xff", b"GET / HTTP/1.1\r\n\r\n")
    for data in sayings:
        assert await raw_stream(site, data, issued) is grpc.StatusCode.INVALID_ARGUMENT
    assert site.refused("malformed") == len(sayings)
    call = site.channel(site.plane.certify_admin()).unary_unary(
        "/licapi.control.v1.Admin/ListHosts"
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"\xff\xff\xff")
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await still_serves(site)


async def test_what_is_no_tls_at_all_does_no_harm(site: Site) -> None:
    host, port = site.addresses.control.rsplit(":", 1)
    for data in (b"", b"\x00" * 4096, os.urandom(10_000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        writer.close()
    await still_serves(site)


async def test_oversized_messages_are_refused(site: Site) -> None:
    _, issued = site.plane.enroll_host()
    for size in (100_000, 5_000_000, 20_000_000):
        message = sync_pb2.AgentMessage(hello=sync_pb2.Hello(counter=b"x" * size))
        data = message.SerializeToString()
        assert await raw_stream(site, data, issued) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert site.refused("oversized") == 2  # the longest is the core's own affair
    admin = admin_pb2_grpc.AdminStub(site.channel(site.plane.certify_admin()))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await admin.GetHost(admin_pb2.GetHostRequest(host="x" * 5_000_000))
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await still_serves(site)


async def test_a_stream_begins_with_hello_and_says_it_once(site: Site) -> None:
    peer = site.host()
    await peer.open()
    await peer.send(ack=sync_pb2.Ack(nonce=1))
    assert await failure(read_all(peer)) is grpc.StatusCode.INVALID_ARGUMENT
    again = site.host()
    await again.open()
    await again.sync()
    await again.hello()
    assert await failure(read_all(again)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_answers_to_what_was_never_said_change_nothing(site: Site) -> None:
    site.plane.put("a")
    peer = site.host()
    await peer.open()
    await peer.sync()
    for nonce in (0, 77, 2**64 - 1):
        await peer.send(ack=sync_pb2.Ack(nonce=nonce, revision=2**63))
        await peer.send(nack=sync_pb2.Nack(nonce=nonce, revision=2**63, reason=99))
    await eventually(lambda: site.refused("nonce") == 6)
    assert site.worker.hub.streams[peer.identity.host_id].revision == 1


async def test_a_host_that_floods_is_cut(start: Start) -> None:
    site = await start(settings(Limits(messages_a_second=1)))
    peer = site.host()
    await peer.open()
    await peer.sync()
    with contextlib.suppress(grpc.aio.AioRpcError):  # it is cut while it still writes
        for _ in range(200):
            await peer.send(ack=sync_pb2.Ack(nonce=1))
    await eventually(lambda: site.refused("messages") == 1)
    await eventually(lambda: not site.worker.hub.streams)
    await still_serves(site)


# --------------------------------------------------------------------------------- limits


async def test_a_stream_without_hello_is_ended(start: Start) -> None:
    site = await start(settings(Limits(hello_timeout_s=0.2)))
    peer = site.host()
    await peer.open()
    assert await failure(read_all(peer)) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert site.refused("no_hello") == 1


async def test_half_open_streams_are_bounded_and_leave_room_for_no_more(start: Start) -> None:
    site = await start(settings(Limits(streams_waiting=5, hello_timeout_s=60)))
    half_open = [site.host() for _ in range(8)]
    for peer in half_open:
        await peer.open()
    await eventually(lambda: site.refused("half_open") == 3)
    assert "licplane_sync_streams_waiting 5" in site.worker.site.metrics.text()
    for peer in half_open:
        await peer.close()
    await eventually(lambda: "licplane_sync_streams_waiting 0" in site.worker.site.metrics.text())
    await still_serves(site)


async def test_connections_that_never_finish_their_handshake_are_closed(start: Start) -> None:
    site = await start(settings(Limits(handshake_timeout_s=3)))
    host, port = site.addresses.control.rsplit(":", 1)
    made = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    for reader, writer in made:
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
    await still_serves(site)


async def test_connections_are_bounded(start: Start) -> None:
    site = await start(settings(Limits(connections=2)))
    peers = [site.host() for _ in range(4)]
    codes = []
    for peer in peers:
        await peer.open()
        try:
            await peer.sync()
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
    assert codes == [grpc.StatusCode.UNAVAILABLE] * 2
    await peers[0].close()
    # gRPC counts a connection until it is torn down, which is a moment after its stream.
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await still_serves(site)
                break


async def test_one_host_has_few_streams(start: Start) -> None:
    site = await start(settings(Limits(streams_a_host=2, hello_timeout_s=60)))
    host_id, issued = site.plane.enroll_host()
    peers = [site.peer(host_id, issued) for _ in range(3)]
    for peer in peers:
        await peer.open()
    await eventually(lambda: site.refused("streams") == 1)
    await still_serves(site)


async def test_who_does_not_read_is_cut(start: Start) -> None:
    site = await start(settings(Limits(write_timeout_s=3)))
    for number in range(200):
        site.plane.put(f"b{number}", os.urandom(40_000), ring=False)
    site.plane.ring()
    await eventually(lambda: site.worker.hub.revision == 200)
    slow = site.host()
    await slow.open()
    await slow.hello()  # and never a read: gRPC's client stops taking more of it
    await eventually(lambda: site.refused("slow") == 1)
    await eventually(lambda: not site.worker.hub.streams)
    assert site.worker.hub.slots.taken == 0
    await still_serves(site)


async def test_a_queue_that_fills_up_ends_the_stream(start: Start) -> None:
    site = await start(settings(Limits(queue_messages=8, write_timeout_s=60)))
    for number in range(5):
        site.plane.put(f"big-{number}", os.urandom(3_000_000), ring=False)
    site.plane.ring()
    await eventually(lambda: site.worker.hub.revision == 5)
    slow = site.host()
    await slow.open()
    await slow.hello()
    await eventually(lambda: site.worker.hub.streams)
    # What is revoked before the stream has its first delta comes with that: so many count not.
    numbers = itertools.count()

    async def revoked_until_refused() -> None:
        while not site.refused("queue"):
            revision = site.plane.put(f"rev-{next(numbers)}", os.urandom(9), kind=Kind.REVOCATION)
            await eventually(lambda revision=revision: site.worker.hub.revision == revision)

    await asyncio.wait_for(revoked_until_refused(), DEADLINE_S)
    assert site.refused("queue") == 1
    await eventually(lambda: not site.worker.hub.streams)
    await still_serves(site)


async def test_a_storm_is_told_to_come_back_at_different_times(start: Start) -> None:
    site = await start(settings(streams_a_second=0.001, streams_burst=2))
    retries = []
    for number in range(6):
        peer = site.host()
        await peer.open()
        await peer.hello()
        message = await peer.receive()
        assert message is not None
        if number < 2:
            assert message.WhichOneof("message") == "welcome"
            continue
        assert message.notice.code == sync_pb2.Notice.CODE_RETRY_LATER
        retries.append(message.notice.retry_after_ms)
        assert await peer.receive() is None
    assert all(500 <= one <= 10_000 for one in retries)
    assert site.worker.site.metrics.total("licplane_sync_refused_total", why="admission") == 4


async def test_cold_syncs_take_turns_and_nobody_starves(start: Start) -> None:
    site = await start(settings(cold_syncs=1, cold_bytes=100, cold_hold_s=3))
    site.plane.put("big", os.urandom(1000))
    await eventually(lambda: site.worker.hub.revision == 1)
    stuck = site.host()  # takes the only slot, and never answers
    await stuck.open()
    await stuck.hello()
    await eventually(lambda: site.worker.hub.slots.taken == 1)
    peers = [site.host() for _ in range(5)]
    for peer in peers:
        await peer.open()
    await asyncio.gather(*(peer.sync() for peer in peers))
    assert site.refused("slow_sync") == 1
    await eventually(lambda: site.worker.hub.slots.taken == 0)


async def test_cold_syncs_beyond_the_line_are_told_to_come_back(start: Start) -> None:
    site = await start(settings(cold_syncs=1, cold_waiting=0, cold_bytes=100, cold_hold_s=60))
    site.plane.put("big", os.urandom(1000))
    await eventually(lambda: site.worker.hub.revision == 1)
    first, second = site.host(), site.host()
    await first.open()
    await first.hello()
    await eventually(lambda: site.worker.hub.slots.taken == 1)
    await second.open()
    with pytest.raises(ConnectionError, match=str(sync_pb2.Notice.CODE_RETRY_LATER)):
        await second.sync()


async def test_revisions_that_are_made_up_fill_no_memory(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("licplane.api.deltas._CACHE_MAX", 3)
    site.plane.put("a")
    await eventually(lambda: site.worker.hub.revision == 1)
    for revision in range(2, 12):
        peer = site.host()
        peer.held.revision = revision * 10**9
        await peer.open()
        await peer.sync()
    assert len(site.worker.hub.deltas) == 3


# ------------------------------------------------------------------------------ telemetry


async def test_reports_are_stored_answered_and_paced(start: Start) -> None:
    site = await start(settings(Limits(telemetry_interval_s=0.01)))
    host_id, issued = site.plane.enroll_host()
    call: Any = telemetry_pb2_grpc.TelemetryStub(site.channel(issued)).Report()
    for sequence in (1, 2):
        state = telemetry_pb2.HostState(mode="enforce", revision=7)
        await call.write(telemetry_pb2.HostReport(sequence=sequence, state=state))
        receipt = await call.read()
        assert (receipt.sequence, receipt.pause_ms) == (sequence, 0)
    assert [(name, report.revision) for name, report in site.plane.reports] == [(host_id, 7)] * 2
    assert '"mode":"enforce"' in site.plane.reports[0][1].json.replace(" ", "")


async def test_reports_wait_unread_while_others_are_stored(start: Start) -> None:
    limits = Limits(telemetry_reports=1, telemetry_interval_s=0.0)
    site = await start(settings(limits))
    site.plane.report_gate.clear()
    calls = []
    for _ in range(3):
        _, issued = site.plane.enroll_host()
        call: Any = telemetry_pb2_grpc.TelemetryStub(site.channel(issued)).Report()
        await call.write(telemetry_pb2.HostReport(sequence=1))
        calls.append(call)
    await still_serves(site)  # a sync stream has nothing to do with that
    site.plane.put("news")
    assert not site.plane.reports
    site.plane.report_gate.set()
    for call in calls:
        assert (await call.read()).sequence == 1
    assert len(site.plane.reports) == 3


async def test_an_evicted_host_reports_no_more(site: Site) -> None:
    host_id, issued = site.plane.enroll_host()
    site.plane.hosts[host_id] = replace(site.plane.hosts[host_id], status=HostStatus.EVICTED)
    call: Any = telemetry_pb2_grpc.TelemetryStub(site.channel(issued)).Report()
    said = say(call, telemetry_pb2.HostReport(sequence=1))
    assert await failure(said) is grpc.StatusCode.PERMISSION_DENIED
    assert not site.plane.reports
