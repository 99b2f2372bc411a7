# SPDX-License-Identifier: Apache-2.0
"""The session against a server with real TLS: sync, ACK, NACK, resume, notices, telemetry."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest

from licagent.control.interface import ControlPhase, NackReason, NoticeCode, Refused
from licagent.domain.catalog import ViewKey
from licapi.control.v1 import common_pb2, sync_pb2
from lictoken.keys import SigningKey
from lictoken.revocation import Revocation, RevocationAction, sign_revocation
from lictoken.trust import TrustedKey, TrustStore

RESOURCE, BINDING, LICENSE, REVOCATION, TRUST = 1, 2, 3, 4, 5


async def synced(plane, peer, model, since=0):
    nonce = await peer.push(model.parts(since))
    ack = await peer.receive("ack")
    assert (ack.nonce, ack.revision) == (nonce, model.revision)


async def test_hello_welcome_counter_delta_and_resume(plane, model, folder, kernel, run_host):
    identity = folder.enrolled(plane.control)
    host = run_host()
    peer = await plane.stream()
    assert peer.hello.counter == identity.counter
    assert (peer.hello.revision, peer.hello.digest) == (0, b"")
    assert peer.hello.view.org == "acme"
    await peer.welcome(b"\7" * 32)
    kept = await peer.receive("counter_kept")
    assert kept.counter == b"\7" * 32
    # On disk before it was confirmed:
    assert folder.identities.load().counter == b"\7" * 32

    model.change((RESOURCE, "db", b"{}"), (BINDING, "b", b"{1}"))
    model.change((RESOURCE, "web", b"{2}"))
    await synced(plane, peer, model)
    assert kernel.objects == model.live()
    first = model.revision
    model.change((BINDING, "b", None))
    await synced(plane, peer, model, since=first)
    assert kernel.objects == model.live()
    await host.until(lambda: host.session.state.revision == model.revision)
    assert host.session.state.lag_revisions == 0

    await peer.end()
    again = await plane.stream()
    assert again.hello.revision == model.revision
    assert again.hello.digest == model.digests[model.revision]
    assert again.hello.counter == b"\7" * 32


async def test_a_restart_goes_on_from_the_disk(plane, model, folder, run_host, kit):
    folder.enrolled(plane.control)
    host = run_host()
    peer = await plane.stream()
    await peer.welcome()
    model.change((RESOURCE, "db", b"{}"))
    await synced(plane, peer, model)
    await host.stop()
    later = folder.reopened()
    try:
        fresh = run_host(later)
        assert fresh.booted.problems == ()
        assert fresh.booted.catalog.revision == 1
        assert [each.name for each in fresh.booted.catalog.objects.values()] == ["db"]
        assert fresh.booted.assignment.labels == kit.LABELS
        assert (await plane.stream()).hello.revision == 1
        await fresh.stop()
    finally:
        later.close()


async def test_what_the_kernel_refuses_stays_out_and_is_told(
    plane, model, folder, kernel, run_host
):
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    model.change((RESOURCE, "db", b"{}"))
    await synced(plane, peer, model)
    held = kernel.objects
    kernel.refuse = Refused(NackReason.POLICY, "user nobody-here is unknown")
    model.change((BINDING, "b", b"{}"))
    nonce = await peer.push(model.parts(1))
    nack = await peer.receive("nack")
    assert (nack.nonce, nack.revision, nack.reason) == (nonce, 1, sync_pb2.NACK_REASON_POLICY)
    assert "nobody-here" in nack.detail
    assert kernel.objects == held
    assert folder.catalogs.load().objects[0].name == "db"
    assert len(folder.catalogs.load().objects) == 1
    kernel.refuse = None
    await synced(plane, peer, model, since=1)
    assert kernel.objects == model.live()


async def test_a_fault_of_the_daemon_is_a_nack_and_not_the_end(
    plane, model, folder, kernel, run_host
):
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    kernel.refuse = RuntimeError("surprise")
    model.change((RESOURCE, "db", b"{}"))
    await peer.push(model.parts(0))
    nack = await peer.receive("nack")
    assert nack.reason == sync_pb2.NACK_REASON_KERNEL
    kernel.refuse = None
    await synced(plane, peer, model)


async def test_a_refused_delta_still_takes_away(plane, model, folder, kernel, run_host):
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    kernel.refuse = Refused(NackReason.POLICY, "no")
    model.change((BINDING, "b", b"{}"), (REVOCATION, "r1", b"token"))
    await peer.push(model.parts(0))
    await peer.receive("nack")
    assert kernel.revoked == [b"token"]


async def test_a_revocation_does_not_wait_for_a_catalog(plane, model, folder, kernel, run_host):
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    kernel.gate = asyncio.Event()
    model.change((RESOURCE, "db", b"{}"))
    await peer.push(model.parts(0))
    await kernel.at_gate.wait()
    nonce = await peer.send(
        revocations=sync_pb2.Revocations(
            objects=[common_pb2.Object(kind=REVOCATION, name="r", revision=2, payload=b"gone")]
        )
    )
    ack = await peer.receive("ack")
    assert (ack.nonce, ack.revision) == (nonce, 0)
    assert kernel.log == ["revocations"]
    kernel.gate.set()
    assert (await peer.receive("ack")).revision == 1


@pytest.mark.parametrize(
    "case",
    [
        ("key", sync_pb2.NACK_REASON_SIGNATURE),
        ("payload", sync_pb2.NACK_REASON_DIGEST),
        ("unsigned", sync_pb2.NACK_REASON_SIGNATURE),
        ("view", sync_pb2.NACK_REASON_NOT_OURS),
        ("base", sync_pb2.NACK_REASON_BASE),
        ("old", sync_pb2.NACK_REASON_ROLLBACK),
        ("dropped object", sync_pb2.NACK_REASON_DIGEST),
        ("kind", sync_pb2.NACK_REASON_POLICY),
        ("revocation kind", sync_pb2.NACK_REASON_SIGNATURE),
    ],
)
async def test_what_is_not_signed_for_this_host_is_refused(plane, folder, kernel, run_host, case):
    (spoil, reason), model = case, plane.model
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    model.change((RESOURCE, "db", b"{}"))
    old = model.parts(0)
    model.change((RESOURCE, "web", b"{}"), (LICENSE, "l", b"token"))
    await synced(plane, peer, model)
    held = kernel.objects
    model.change((RESOURCE, "evil", b"{}"))
    parts = model.parts(2)
    if spoil == "key":
        parts = model.parts(2, key=SigningKey.create("acme"))
    elif spoil == "payload":
        parts[0].objects[0].payload = b"{all}"
    elif spoil == "unsigned":
        parts[0].ClearField("manifest")
    elif spoil == "view":
        parts = model.parts(2, view=ViewKey("other"))
    elif spoil == "base":
        parts[0].from_revision = 1
    elif spoil == "old":
        parts = old
    elif spoil == "dropped object":
        del parts[0].objects[:]
    elif spoil == "kind":
        parts[0].objects[0].kind = 77
    if spoil == "revocation kind":
        await peer.send(revocations=sync_pb2.Revocations(objects=parts[0].objects))
    else:
        await peer.push(parts)
    nack = await peer.receive("nack")
    assert (nack.reason, nack.revision) == (reason, 2)
    assert kernel.objects == held
    await synced(plane, peer, model, since=0)
    assert kernel.objects == model.live()


async def test_labels_change_then_the_view(plane, model, folder, kernel, run_host):
    identity = folder.enrolled(plane.control)
    host = run_host()
    peer = await plane.stream()
    await peer.welcome()
    model.change((RESOURCE, "db", b"{}"))
    await synced(plane, peer, model)
    labels = {"org": "acme", "project": "shop", "environment": "test", "region": "us"}
    await peer.send(assignment=model.assignment(identity.host_id, 2, labels))
    await peer.receive("ack")
    assert kernel.assignments[-1].labels == labels
    model.view = ViewKey.of(labels)
    model.change((RESOURCE, "db", None), (RESOURCE, "us", b"{}"))
    await synced(plane, peer, model)
    assert host.session.state.labels == labels
    # Never back, and never another host's:
    await peer.send(assignment=model.assignment(identity.host_id, 1))
    assert (await peer.receive("nack")).reason == sync_pb2.NACK_REASON_ROLLBACK
    await peer.send(assignment=model.assignment("somebody-else", 9))
    assert (await peer.receive("nack")).reason == sync_pb2.NACK_REASON_NOT_OURS
    await peer.end()
    assert (await plane.stream()).hello.assignment_sequence == 2


async def test_new_keys_come_with_a_snapshot_of_an_old_one(plane, model, folder, kernel, run_host):
    folder.enrolled(plane.control)
    host = run_host()
    peer = await plane.stream()
    await peer.welcome()
    model.change((RESOURCE, "db", b"{}"))
    await synced(plane, peer, model)
    old, new = model.key, SigningKey.create("acme")
    keys = [TrustedKey.of(old.public_key, "acme").retired(), TrustedKey.of(new.public_key, "acme")]
    trust = TrustStore(keys).to_bytes()
    # On its own word the new key is nobody, whatever it brings along:
    model.change((TRUST, "trust", trust))
    await peer.push(model.parts(1, key=new))
    assert (await peer.receive("nack")).reason == sync_pb2.NACK_REASON_SIGNATURE
    await synced(plane, peer, model, since=1)
    # From then on it counts, and the old one does not:
    model.change((RESOURCE, "web", b"{}"))
    await peer.push(model.parts(2))
    assert (await peer.receive("nack")).reason == sync_pb2.NACK_REASON_SIGNATURE
    await host.stop()
    later = folder.reopened()
    try:
        # The stored snapshot is signed by the key that it retired.
        fresh = run_host(later)
        assert fresh.booted.problems == ()
        assert fresh.booted.catalog.revision == 2
        peer = await plane.stream()
        await peer.welcome()
        model.key = new
        await synced(plane, peer, model, since=2)
        await fresh.stop()
    finally:
        later.close()


async def test_keys_that_would_lock_the_host_out_are_refused(
    plane, model, folder, kernel, run_host
):
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    gone = TrustStore([TrustedKey.of(model.key.public_key, "acme").retired()]).to_bytes()
    model.change((TRUST, "trust", gone))
    await peer.push(model.parts(0))
    assert (await peer.receive("nack")).reason == sync_pb2.NACK_REASON_SIGNATURE
    assert kernel.revisions == []


async def test_leases_are_asked_for_and_count_from_the_request(
    plane, model, folder, kernel, run_host
):
    identity = folder.enrolled(plane.control)
    now_ns = [5_000_000_000]
    host = run_host(boottime_ns=lambda: now_ns[0])
    peer = await plane.stream()
    await peer.welcome(lease_ttl_ms=600_000)
    model.change((LICENSE, "acme-1", b"token"))
    await synced(plane, peer, model)
    request = await peer.receive("lease_request")
    now_ns[0] += 7_000_000_000  # the answer takes its time: that is nobody's gain
    nonce = await peer.send(leases=model.leases(request, identity, "acme-1"))
    assert (await peer.receive("ack")).nonce == nonce
    assert kernel.leases[-1].end_boottime_ns == 5_000_000_000 + 600_000_000_000
    assert kernel.leases[-1].end_of("acme-1", 1) > 0
    assert kernel.leases[-1].end_of("acme-2", 1) == 0
    await host.until(lambda: host.session.state.leased_licenses == 1)
    # The same bundle once more extends nothing:
    await peer.send(leases=model.leases(request, identity, "acme-1"))
    assert (await peer.receive("nack")).reason == sync_pb2.NACK_REASON_NOT_OURS
    # At about half of its time it is asked for again:
    now_ns[0] = 5_000_000_000 + 331_000_000_000
    host.session.ask_for_leases()
    assert (await peer.receive("lease_request")).nonce != request.nonce
    # They outlive the agent, within the boot:
    await host.stop()
    later = folder.reopened()
    try:
        fresh = run_host(later)
        assert fresh.booted.leases.end_boottime_ns == 605_000_000_000
        await fresh.stop()
        rebooted = run_host(later, boot_id="another")
        assert rebooted.booted.leases.leases == {}
        assert rebooted.booted.problems == ()
        await rebooted.stop()
    finally:
        later.close()


@pytest.mark.parametrize("field", ["host_id", "key_fingerprint", "boot_id", "nonce", "kid"])
async def test_leases_of_others_are_refused(plane, folder, kernel, run_host, field):
    model = plane.model
    identity = folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    model.change((LICENSE, "acme-1", b"token"))
    await synced(plane, peer, model)
    request = await peer.receive("lease_request")
    if field == "kid":
        bundle = model.manifest()  # signed, but for another purpose
    else:
        other = b"\0" * 16 if field in ("nonce", "key_fingerprint") else "other"
        bundle = model.leases(request, identity, "acme-1", **{field: other})
    await peer.send(leases=bundle)
    nack = await peer.receive("nack")
    wanted = "SIGNATURE" if field == "kid" else "NOT_OURS"
    assert nack.reason == sync_pb2.NackReason.Value(f"NACK_REASON_{wanted}")
    assert kernel.leases == []


async def test_a_reinstatement_asks_for_leases_and_a_revocation_does_not(
    plane, model, folder, kernel, run_host
):
    identity = folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    model.change((LICENSE, "acme-1", b"token"))
    await synced(plane, peer, model)
    request = await peer.receive("lease_request")
    await peer.send(leases=model.leases(request, identity, "acme-1"))
    await peer.receive("ack")
    for at, action in enumerate((RevocationAction.SUSPEND, RevocationAction.REINSTATE)):
        token = sign_revocation(
            Revocation(f"r{at}", "acme", "licagent", 1, "acme-1", action, 1, "why"), model.key
        ).encode()
        since = model.revision
        model.change((REVOCATION, f"r{at}", token))
        await peer.push(model.parts(since))
    # In the order of the stream: the ACK of the first, then that of the second, then a request.
    kinds = []
    async with asyncio.timeout(20):
        while kinds.count("ack") < 2 or "lease_request" not in kinds:
            kinds.append((await peer.incoming.get()).WhichOneof("message"))
    assert kinds[0] == "ack"
    assert kinds.count("lease_request") == 1


@pytest.mark.parametrize("code", [NoticeCode.EVICTED, NoticeCode.BANNED])
async def test_an_evicted_host_stops_until_it_is_woken(plane, folder, kernel, run_host, code):
    folder.enrolled(plane.control)
    host = run_host()
    peer = await plane.stream()
    await peer.send(notice=sync_pb2.Notice(code=int(code), detail="go away"))
    await host.until(lambda: host.session.state.phase is ControlPhase.STOPPED)
    assert kernel.notices == [code]
    assert host.session.state.notice is code
    assert plane.streams.empty()
    host.session.wake()
    await plane.stream()


async def test_a_cloned_host_says_so_and_looks_again(plane, folder, kernel, run_host):
    folder.enrolled(plane.control)
    host = run_host()
    peer = await plane.stream()
    await peer.send(notice=sync_pb2.Notice(code=3, detail="two machines"))
    await host.until(lambda: host.session.state.notice is NoticeCode.CLONED)
    assert kernel.notices == [NoticeCode.CLONED]
    peer = await plane.stream()
    await peer.welcome()
    await host.until(lambda: host.session.state.notice is NoticeCode.UNSPECIFIED)


@pytest.mark.parametrize("code", [1, 6])
async def test_a_server_that_asks_for_patience_gets_it(plane, folder, run_host, code):
    folder.enrolled(plane.control)
    host = run_host(backoff_cap_ms=500_000)
    peer = await plane.stream()
    await peer.send(notice=sync_pb2.Notice(code=code, retry_after_ms=300_000))
    state = await host.until(
        lambda: host.session.state.phase is ControlPhase.WAITING and host.session.state
    )
    assert state.retry_at_unix_ms - time.time() * 1000 > 250_000


async def test_a_link_that_goes_dead_is_noticed_and_comes_back(
    plane, model, folder, run_host, tmp_path
):
    """Between host and server, somebody stops passing bytes on, without closing anything."""
    stalled, forever = asyncio.Event(), asyncio.Event()
    tasks = []

    async def pump(reader, writer):
        while data := await reader.read(65536):
            if stalled.is_set():
                await forever.wait()
            writer.write(data)

    async def accept(reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", plane.port)
        writers.extend((writer, far_writer))
        tasks.extend(
            asyncio.ensure_future(pump(*pair))
            for pair in ((reader, far_writer), (far_reader, writer))
        )

    writers = []
    proxy = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        folder.enrolled(address)
        host = run_host()
        peer = await plane.stream()
        await peer.welcome()
        await host.until(lambda: host.session.state.phase is ControlPhase.CONNECTED)
        stalled.set()
        await host.until(lambda: host.session.state.phase is not ControlPhase.CONNECTED)
        assert host.session.state.last_error
        stalled.clear()
        await (await plane.stream()).welcome()
        await host.until(lambda: host.session.state.phase is ControlPhase.CONNECTED)
    finally:
        await host.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
        proxy.close()
        await proxy.wait_closed()


async def test_a_cut_in_the_middle_of_a_change_does_not_tear_it(
    plane, model, folder, kernel, run_host
):
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    kernel.gate = asyncio.Event()
    model.change((RESOURCE, "db", b"{}"))
    await peer.push(model.parts(0))
    await kernel.at_gate.wait()
    await peer.end()
    await peer.gone.wait()
    kernel.gate.set()
    again = await plane.stream()
    assert again.hello.revision == 1
    assert folder.catalogs.load().objects[0].name == "db"


async def test_reports_go_over_a_connection_of_their_own(plane, folder, kernel, run_host):
    folder.enrolled(plane.control)
    host = run_host(report_interval_ms=20)
    peer = await plane.stream()
    await peer.welcome()
    async with asyncio.timeout(20):
        reports = [await plane.reports.get() for _ in range(3)]
    assert [report.sequence for _, report in reports] == [1, 2, 3]
    assert reports[0][1].state.hostname == "web-1"
    assert reports[0][0] != peer.context.peer()
    await host.until(lambda: host.session.state.reports_sent >= 2)


async def test_a_server_of_another_authority_is_not_spoken_to(plane, model, folder, run_host, kit):
    folder.authority = kit.Authority("another root")
    folder.enrolled(plane.control)
    host = run_host()
    await host.until(lambda: host.session.state.attempts >= 2)
    assert plane.streams.empty()
    assert "no connection" in host.session.state.last_error


async def test_a_host_certificate_makes_no_server(folder, authority, model, run_host, kit):
    """Hosts have certificates of the same authority: they must not pass for the server."""
    import grpc

    from licagent.control import hostkey

    other = kit.HostFolder(folder.path.parent / "other", model, authority)
    impostor = other.enrolled()
    other.close()
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials(
        [(impostor.key_pem, hostkey.pem_of(*impostor.certificate_chain))]
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        folder.enrolled(f"127.0.0.1:{port}")
        host = run_host()
        await host.until(lambda: host.session.state.attempts >= 2)
        assert host.session.state.connected_since_unix_ms == 0
        await host.stop()
    finally:
        await server.stop(None)


async def test_only_tls_1_3_is_spoken(folder, authority, run_host, tmp_path):
    import ssl

    key, certificate = authority.server()
    pem = tmp_path / "server.pem"
    pem.write_bytes(key + certificate)
    versions = {}
    loop = asyncio.get_running_loop()
    for name, maximum in (("old", ssl.TLSVersion.TLSv1_2), ("new", ssl.TLSVersion.TLSv1_3)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        context.maximum_version = maximum
        context.set_alpn_protocols(["h2"])
        context.sslsocket_class = ssl.SSLSocket
        tried = asyncio.Event()

        # In a thread to its end: a task that is cancelled in an accept may lose what it took.
        def handshakes(listener, context=context, name=name, tried=tried):
            with contextlib.suppress(OSError):  # it was shut down
                while True:
                    taken, _ = listener.accept()
                    with taken:
                        taken.settimeout(10)
                        try:
                            with context.wrap_socket(taken, server_side=True) as secured:
                                versions[name] = secured.version()
                        except OSError as error:  # an SSLError is one
                            versions.setdefault(name, str(error))
                    loop.call_soon_threadsafe(tried.set)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.ensure_future(asyncio.to_thread(handshakes, listener))
            try:
                folder.enrolled(f"127.0.0.1:{listener.getsockname()[1]}")
                host = run_host()
                async with asyncio.timeout(60):
                    await tried.wait()
                await host.stop()
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                await serving
    assert versions["new"] == "TLSv1.3"
    assert "NO_SHARED_CIPHER" in versions["old"]


async def test_a_new_stream_does_not_ask_for_what_is_leased(plane, model, folder, kernel, run_host):
    identity = folder.enrolled(plane.control)
    host = run_host(boottime_ns=lambda: 1_000_000_000)
    peer = await plane.stream()
    await peer.welcome()
    model.change((LICENSE, "acme-1", b"token"))
    await synced(plane, peer, model)
    request = await peer.receive("lease_request")
    await peer.send(leases=model.leases(request, identity, "acme-1"))
    await host.until(lambda: host.session.state.leased_licenses == 1)
    await peer.end()

    async def until_ack(peer):
        kinds = []
        async with asyncio.timeout(20):
            while "ack" not in kinds:
                kinds.append((await peer.incoming.get()).WhichOneof("message"))
        return kinds

    peer = await plane.stream()
    await peer.welcome()
    model.change((RESOURCE, "db", b"{}"))
    await peer.push(model.parts(1))
    assert "lease_request" not in await until_ack(peer)
    # But it does for a license that is new:
    model.change((LICENSE, "acme-2", b"token"))
    await peer.push(model.parts(2))
    await peer.receive("lease_request")
