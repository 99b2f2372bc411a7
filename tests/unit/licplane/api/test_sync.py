# SPDX-License-Identifier: Apache-2.0
"""The sync stream between real TLS peers: order, deltas, answers, resume, what ends it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from tests.bench.control_peer import Held, Peer
from tests.unit.licplane.api.conftest import Site, Start, eventually

from licapi.control.v1 import common_pb2, sync_pb2
from licplane.api.settings import Limits, ServerSettings
from licplane.service.values import HostStatus, Kind, Scope
from lictoken.digest import digest_of

ACME = Scope("acme")
OTHER = Scope("other")


async def expect(peer: Peer, kind: str) -> sync_pb2.ServerMessage:
    """The next message, which is of this kind."""
    message = await peer.receive()
    assert message is not None, "the stream ended"
    assert message.WhichOneof("message") == kind, message
    return message


async def ended(peer: Peer) -> None:
    """The stream ends, and nothing more comes."""
    assert await peer.receive() is None


async def synced(site: Site, **labels: str) -> Peer:
    """A host that is connected and up to date."""
    peer = site.host(**labels)
    await peer.open()
    await peer.sync()
    return peer


async def follow(peer: Peer, revision: int) -> None:
    """Handle messages until the host is at a revision."""
    while peer.held.revision < revision:
        message = await peer.receive()
        assert message is not None
        await peer.handle(message)


async def test_a_host_gets_welcome_then_revocations_then_all_it_sees(site: Site) -> None:
    site.plane.put("one", b"1", scope=ACME)
    site.plane.put("foreign", b"2", scope=OTHER)
    site.plane.put("rev-1", b"r", Kind.REVOCATION, ACME)
    peer = site.host(org="acme")
    await peer.open()
    await peer.hello()
    welcome = (await expect(peer, "welcome")).welcome
    assert welcome.counter == site.plane.hosts[peer.identity.host_id].pending
    assert welcome.lease_ttl_ms == 600_000
    await expect(peer, "assignment")
    revocations = (await expect(peer, "revocations")).revocations
    assert [one.name for one in revocations.objects] == ["rev-1"]
    message = await expect(peer, "delta")
    delta = message.delta
    assert (delta.reset, delta.from_revision, delta.to_revision) == (True, 0, 3)
    assert sorted(one.name for one in delta.objects) == ["one", "rev-1"]
    manifest = sync_pb2.SnapshotManifest.FromString(delta.manifest.payload)
    assert manifest.digest == digest_of((one.kind, one.name, one.payload) for one in delta.objects)
    await peer.send(ack=sync_pb2.Ack(nonce=message.nonce, revision=3))
    host_id = peer.identity.host_id
    await eventually(
        lambda: host_id in site.plane.progress and site.plane.progress[host_id].revision == 3
    )


async def test_a_change_goes_to_those_who_see_it_encoded_and_signed_once(site: Site) -> None:
    site.plane.put("a")
    acme = [await synced(site, org="acme") for _ in range(5)]
    other = await synced(site, org="other")
    before = site.plane.manifests_signed
    revision = site.plane.put("rev-7", b"stop", Kind.REVOCATION, ACME)
    for peer in acme:
        first = await expect(peer, "revocations")
        assert first.revocations.objects[0].name == "rev-7"
        second = await expect(peer, "delta")
        assert (second.delta.from_revision, second.delta.to_revision) == (1, revision)
    # One for the view that sees it, and one that found nothing for the other.
    await eventually(lambda: site.plane.manifests_signed - before >= 2)
    assert site.plane.manifests_signed - before == 2
    mine = site.plane.put("for-other", b"2", scope=OTHER)
    message = await expect(other, "delta")  # nothing of the revocation came before it
    assert [one.name for one in message.delta.objects] == ["for-other"]
    assert message.delta.to_revision == mine


async def test_an_answer_that_a_host_owes_is_seen_until_it_comes(site: Site) -> None:
    def owed_s() -> float:
        (line,) = (
            line
            for line in site.worker.site.metrics.text().splitlines()
            if line.startswith("licplane_sync_longest_unanswered_seconds ")
        )
        return float(line.rsplit(" ", 1)[1])

    site.plane.put("db")
    peer = await synced(site)
    await eventually(lambda: owed_s() == 0)
    site.plane.put("more")
    message = await expect(peer, "delta")
    assert owed_s() > 0
    await peer.handle(message)
    await eventually(lambda: owed_s() == 0)


async def test_a_small_change_is_a_small_message(site: Site) -> None:
    for number in range(300):
        site.plane.put(f"b{number}", os.urandom(200), ring=False)
    site.plane.ring()
    await eventually(lambda: site.worker.hub.revision == 300)
    peer = await synced(site)
    assert len(peer.held.objects) == 300
    site.plane.put("b7", b"new")
    message = await expect(peer, "delta")
    assert [one.name for one in message.delta.objects] == ["b7"]
    assert (message.delta.from_revision, message.delta.reset) == (300, False)


async def test_a_delta_that_waits_for_its_ack_gathers_what_follows(site: Site) -> None:
    site.plane.put("a")
    peer = await synced(site)
    site.plane.put("b")
    first = await expect(peer, "delta")
    site.plane.put("c")
    site.plane.put("rev", b"r", Kind.REVOCATION)
    revocation = await expect(peer, "revocations")  # does not wait for the ACK
    assert revocation.revocations.objects[0].name == "rev"
    await eventually(lambda: site.worker.hub.revision == 4)
    await peer.send(ack=sync_pb2.Ack(nonce=first.nonce, revision=2))
    second = await expect(peer, "delta")
    assert (second.delta.from_revision, second.delta.to_revision) == (2, 4)
    assert second.nonce > revocation.nonce > first.nonce


async def test_a_refused_delta_is_not_sent_again_until_there_is_something_new(site: Site) -> None:
    site.plane.put("a")
    peer = await synced(site)
    site.plane.put("bad")
    refused = await expect(peer, "delta")
    await peer.send(
        nack=sync_pb2.Nack(
            nonce=refused.nonce, revision=1, reason=sync_pb2.NACK_REASON_POLICY, detail="bad: why"
        )
    )
    host_id = peer.identity.host_id
    progress = site.plane.progress
    await eventually(lambda: host_id in progress and progress[host_id].nack)
    assert progress[host_id].nack == "policy: bad: why"
    assert progress[host_id].revision == 1
    site.plane.put("bad", b"good")
    again = await expect(peer, "delta")
    assert (again.delta.from_revision, again.delta.to_revision) == (1, 3)
    assert not again.delta.reset


async def test_a_digest_that_differs_is_mended_by_a_reset_once(site: Site) -> None:
    site.plane.put("a")
    peer = await synced(site)
    site.plane.put("b")
    broken = await expect(peer, "delta")
    nack = sync_pb2.Nack(nonce=broken.nonce, revision=1, reason=sync_pb2.NACK_REASON_DIGEST)
    await peer.send(nack=nack)
    reset = await expect(peer, "delta")
    assert reset.delta.reset
    assert len(reset.delta.objects) == 2
    nack = sync_pb2.Nack(nonce=reset.nonce, revision=1, reason=sync_pb2.NACK_REASON_DIGEST)
    await peer.send(nack=nack)
    site.plane.put("c")  # not before that does anything come again
    assert (await expect(peer, "delta")).delta.to_revision == 3


async def test_no_delta_overtakes_the_revocations_of_its_revision(site: Site) -> None:
    site.plane.put("a")
    peer = await synced(site)
    site.plane.put("b")
    broken = await expect(peer, "delta")
    site.plane.held_since = 2
    site.plane.put("rev", b"r", Kind.REVOCATION)
    await eventually(site.plane.held_asked.is_set)  # it is known, and not yet made out
    nack = sync_pb2.Nack(nonce=broken.nonce, revision=1, reason=sync_pb2.NACK_REASON_DIGEST)
    await peer.send(nack=nack)
    nacks = site.worker.site.metrics
    await eventually(lambda: nacks.total("licplane_sync_nacks_total") == 1)
    assert await quiet(site)  # the reset is ready at once, and waits
    site.plane.held_gate.set()
    await expect(peer, "revocations")
    assert (await expect(peer, "delta")).delta.reset


async def quiet(site: Site) -> bool:
    """Whether another host's first sync, begun now, is through: all that was ready went out."""
    await synced(site, org="another")
    return True


async def test_a_host_resumes_from_its_revision(site: Site) -> None:
    site.plane.put("a")
    peer = await synced(site)
    await peer.close()
    await eventually(lambda: not site.worker.hub.streams)
    assert peer.identity.host_id in site.plane.closed_streams
    site.plane.put("b")
    await eventually(lambda: site.worker.hub.revision == 2)
    await peer.open()
    await peer.hello(assignment_sequence=1)
    await expect(peer, "welcome")
    delta = (await expect(peer, "delta")).delta
    assert (delta.reset, delta.from_revision, delta.to_revision) == (False, 1, 2)
    assert [one.name for one in delta.objects] == ["b"]


async def test_a_host_that_holds_something_else_gets_a_reset(site: Site) -> None:
    site.plane.put("a")
    await eventually(lambda: site.worker.hub.revision == 1)
    for held, view in (
        (Held(revision=1, digest=b"x" * 32), {}),
        (Held(revision=1, digest=b"x" * 32), {"view": common_pb2.View(org="elsewhere")}),
        (Held(revision=99, digest=b"x" * 32), {}),
    ):
        peer = site.host()
        peer.held = held
        await peer.open()
        await peer.hello(assignment_sequence=1, **view)
        await expect(peer, "welcome")
        assert (await expect(peer, "delta")).delta.reset


async def test_a_large_view_comes_in_parts_and_a_revocation_goes_between(start: Start) -> None:
    limits = Limits(delta_part_bytes=64 * 1024)
    site = await start(ServerSettings(limits=limits, stop_grace_s=0.5))
    for number in range(300):
        site.plane.put(f"b{number}", os.urandom(10_000), ring=False)
    site.plane.ring()
    await eventually(lambda: site.worker.hub.revision == 300)
    peer = site.host()
    await peer.open()
    await peer.hello(assignment_sequence=1)
    await expect(peer, "welcome")
    sizes, names, kinds = [], set(), []
    while True:
        message = await peer.receive()
        assert message is not None
        kinds.append(message.WhichOneof("message"))
        if kinds[-1] == "delta":
            sizes.append(message.ByteSize())
            names |= {one.name for one in message.delta.objects}
            if not message.delta.more:
                break
    assert len(names) == 300
    assert len(sizes) > 40
    assert max(sizes) <= 64 * 1024


async def test_leases_answer_the_request_that_asked(site: Site) -> None:
    peer = await synced(site)
    nonce = await peer.request_leases()
    bundle = sync_pb2.LeaseBundle.FromString((await expect(peer, "leases")).leases.payload)
    assert (bundle.nonce, bundle.host_id) == (nonce, peer.identity.host_id)
    fingerprints = {one.key_fingerprint for one in site.plane.identities.values()}
    assert bundle.key_fingerprint in fingerprints


async def test_new_labels_reach_the_host_and_change_what_it_sees(site: Site) -> None:
    site.plane.put("for-acme", scope=ACME)
    site.plane.put("for-other", scope=OTHER)
    peer = await synced(site, org="acme")
    assert {name for _, name in peer.held.objects} == {"for-acme"}
    site.plane.change_host(peer.identity.host_id, labels={"org": "other"})
    sealed = (await expect(peer, "assignment")).assignment
    assert common_pb2.Assignment.FromString(sealed.payload).labels == {"org": "other"}
    delta = (await expect(peer, "delta")).delta
    assert delta.reset
    assert [one.name for one in delta.objects] == ["for-other"]


async def test_a_draining_host_gets_no_changes_but_revocations(site: Site) -> None:
    site.plane.put("a")
    peer = await synced(site)
    site.plane.change_host(peer.identity.host_id, status=HostStatus.DRAINING)
    await expect(peer, "assignment")
    site.plane.put("b")
    site.plane.put("rev", b"r", Kind.REVOCATION)
    await expect(peer, "revocations")
    site.plane.change_host(peer.identity.host_id, status=HostStatus.ACTIVE)
    await expect(peer, "assignment")
    assert (await expect(peer, "delta")).delta.to_revision == 3


async def test_eviction_and_ban_end_the_stream_at_once(site: Site) -> None:
    for status, code in (
        (HostStatus.EVICTED, sync_pb2.Notice.CODE_EVICTED),
        (HostStatus.BANNED, sync_pb2.Notice.CODE_BANNED),
    ):
        peer = await synced(site)
        site.plane.change_host(peer.identity.host_id, status=status)
        assert (await expect(peer, "notice")).notice.code == code
        await ended(peer)
        await peer.close()
        await peer.open()  # and it stays out
        await peer.hello()
        assert (await expect(peer, "notice")).notice.code == code
        await ended(peer)


async def test_a_second_stream_ends_the_first(site: Site) -> None:
    first = await synced(site)
    second = Peer(first.identity)
    site.peers.append(second)
    await second.open()
    await second.sync()
    assert (await expect(first, "notice")).notice.code == sync_pb2.Notice.CODE_SUPERSEDED
    await ended(first)
    site.plane.put("still-there")
    await expect(second, "delta")


async def test_a_clone_is_found_by_its_counter_and_both_are_told(site: Site) -> None:
    peer = site.host()
    stolen = Peer(peer.identity)  # the disk as it was before
    site.peers.append(stolen)
    await peer.open()
    await peer.sync()
    row = site.plane.hosts[peer.identity.host_id]
    await eventually(lambda: not row.pending)
    await stolen.open()
    await stolen.hello()
    for one in (stolen, peer):
        assert (await expect(one, "notice")).notice.code == sync_pb2.Notice.CODE_CLONED
        await ended(one)


async def test_a_catalog_that_was_tampered_with_is_not_served(site: Site) -> None:
    site.plane.put("good")
    peer = await synced(site)
    site.plane.problem = "its digest is another one"
    site.plane.put("forged")
    await eventually(
        lambda: "licplane_catalog_intact 0.0" in site.worker.site.metrics.text().splitlines()
    )
    site.plane.problem = ""
    site.plane.ring()
    message = await expect(peer, "delta")  # nothing came before it was mended
    assert message.delta.to_revision == 2


async def test_a_stream_does_not_outlive_its_certificate(site: Site) -> None:
    old, good = await synced(site), await synced(site)
    stream = site.worker.hub.streams[old.identity.host_id]
    stream.identity = replace(stream.identity, not_after_unix_ms=1)
    site.worker.end_old_certificates()
    notice = (await expect(old, "notice")).notice
    assert notice.code == sync_pb2.Notice.CODE_RETRY_LATER
    await ended(old)
    assert good.identity.host_id in site.worker.hub.streams


async def test_what_fails_on_the_way_to_hosts_is_done_again(site: Site) -> None:
    site.plane.put("a")
    peers = [await synced(site, org=org) for org in ("acme", "other")]
    site.plane.failures = 1
    site.plane.put("rev", b"r", Kind.REVOCATION)
    for peer in peers:
        await expect(peer, "revocations")
        await peer.handle(await expect(peer, "delta"))
    for peer in peers:
        site.plane.failures = 1
        site.plane.change_host(peer.identity.host_id, status=HostStatus.EVICTED)
        await expect(peer, "notice")
    assert site.worker.site.metrics.total("licplane_errors_total") == 3


async def test_a_server_that_stops_says_when_to_come_back(start: Start) -> None:
    site = await start()
    peer = await synced(site)
    stopping = asyncio.create_task(site.worker.stop())
    notice = (await expect(peer, "notice")).notice
    assert notice.code == sync_pb2.Notice.CODE_GOING_AWAY
    assert 500 <= notice.retry_after_ms <= 10_000
    await ended(peer)
    await stopping
    assert site.plane.store_closed
