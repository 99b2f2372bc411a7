# SPDX-License-Identifier: Apache-2.0
"""Counters that tell of clones, leases, assignments, presence."""

from __future__ import annotations

import pytest
from tests.unit.licplane.service.world import ROOT, FakeHost, World, csr, license

from licapi.control.v1 import sync_pb2
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import create_authority
from licplane.service.answers import CounterVerdict
from licplane.service.counters import Counters
from licplane.service.requests import Change, Progress
from licplane.service.values import HostStatus, Identity, Role, View
from licplane.store.host_model import HostCounters
from lictoken.sealed import Seal, SealPurpose, unseal
from lictoken.trust import TrustStore

pytest_plugins = ["tests.support.postgres"]
KEY = b"k" * 32
NONCE = b"n" * 16


def leased(world: World, seal: Seal) -> sync_pb2.LeaseBundle:
    payload = unseal(SealPurpose.LEASE, seal, TrustStore.from_bytes(world.plane.trust()))
    return sync_pb2.LeaseBundle.FromString(payload)


def ask(world: World, host: FakeHost) -> sync_pb2.LeaseBundle:
    world.plane.refresh()
    return leased(world, world.plane.lease(host.id, KEY, "boot", NONCE))


def test_the_counter_turns(both: World) -> None:
    host = both.host()
    first = host.counter
    result = both.plane.open_stream(host.id, first)
    assert result.verdict is CounterVerdict.ACCEPTED
    # The answer was lost: the old one still counts, and gets another.
    again = both.plane.open_stream(host.id, first)
    assert again.verdict is CounterVerdict.ACCEPTED
    assert again.counter != result.counter
    # The answer came, and its confirmation was lost.
    third = both.plane.open_stream(host.id, again.counter)
    assert both.plane.keep_counter(host.id, third.counter) is CounterVerdict.ACCEPTED
    assert both.plane.keep_counter(host.id, third.counter) is CounterVerdict.ACCEPTED
    host.counter = third.counter
    for _ in range(5):
        host.connect()
    assert both.plane.get_host(ROOT, host.id).status is HostStatus.ACTIVE


def test_a_clone_is_found_whichever_comes_first(both: World) -> None:
    host = both.host()
    clone = FakeHost(both.plane, host.machine, host.key, host.id, host.counter, host.fingerprint)
    host.connect()
    host.connect()
    assert both.plane.open_stream(host.id, clone.counter).verdict is CounterVerdict.CLONED
    # From now on both are told.
    assert both.plane.open_stream(host.id, host.counter).verdict is CounterVerdict.CLONED
    assert both.plane.host_state(host.id).status is HostStatus.CLONED
    with pytest.raises(PlaneError, match="cloned"):
        both.plane.lease(host.id, KEY, "boot", NONCE)
    assert both.actions().count("host.cloned") == 1


def test_two_at_the_same_time(both: World) -> None:
    host = both.host()
    one = both.plane.open_stream(host.id, host.counter)
    both.plane.open_stream(host.id, host.counter)
    assert both.plane.keep_counter(host.id, one.counter) is CounterVerdict.CLONED


def put_back(world: World, old: HostCounters) -> None:
    """The row as a backup had it."""
    with world.store.transaction() as transaction:
        transaction.clear_counters(old.host_id)
        assert transaction.swap_counters(None, old)


def test_a_database_that_was_put_back_is_no_clone(both: World) -> None:
    host = both.host()
    with both.store.reading() as reader:
        backup = reader.counters(host.id)
    assert backup is not None
    clone = FakeHost(both.plane, host.machine, host.key, host.id, host.counter, host.fingerprint)
    for _ in range(3):
        host.connect()
    put_back(both, backup)
    answer = both.plane.renew(
        Identity(Role.HOST, host.id, host.id, HostStatus.ACTIVE), csr(host.key), host.counter
    )
    assert answer.counter == host.counter
    host.connect()
    host.connect()
    assert both.plane.get_host(ROOT, host.id).status is HostStatus.ACTIVE
    # And a clone is still a clone.
    assert both.plane.open_stream(host.id, clone.counter).verdict is CounterVerdict.CLONED


def test_a_host_cannot_make_counters_up(both: World) -> None:
    host, other = both.host(), both.host("db-2")
    for _ in range(3):
        other.connect()
    ahead = (99).to_bytes(8, "big") + host.counter[8:]
    for made_up in (ahead, other.counter, host.counter + b"x"):
        victim = both.host(f"db-{len(made_up)}-{made_up[7]}")
        assert both.plane.open_stream(victim.id, made_up).verdict is CounterVerdict.CLONED
    known = HostCounters(host.id, host.counter)
    counters = Counters(create_authority(None, 0)[0])
    stranger = counters.following(host.id, HostCounters(host.id, ahead))
    assert counters.is_ahead(host.id, stranger, known)
    assert both.plane.open_stream(host.id, stranger).verdict is CounterVerdict.CLONED


def test_a_counter_of_nothing(world: World) -> None:
    host = world.host()
    assert world.plane.open_stream(host.id, b"").verdict is CounterVerdict.CLONED
    other = world.host("db-2")
    assert world.plane.open_stream(other.id, b"x" * 10_000).verdict is CounterVerdict.CLONED
    with pytest.raises(PlaneError, match="no host"):
        world.plane.open_stream("00000000-0000-0000-0000-000000000000", b"x")


def test_leases_are_for_what_holds_now(both: World) -> None:
    host = both.host(org="acme", region="eu-1")
    both.apply(
        license("here"),
        license("east", scope={"org": "acme", "regions": ["us-1"]}),
        license("theirs", scope={"org": "other"}),
        license("short", expires="2027-01-15T08:00:01Z"),
    )
    bundle = ask(both, host)
    assert (bundle.host_id, bundle.key_fingerprint, bundle.boot_id, bundle.nonce) == (
        host.id,
        KEY,
        "boot",
        NONCE,
    )
    assert bundle.ttl_ms == 600_000
    assert {one.license for one in bundle.leases} == {"here", "short"}
    both.clock.pass_s(2)
    assert {one.license for one in ask(both, host).leases} == {"here"}
    both.plane.set_license_state(ROOT, Change(), "here", "suspend")
    assert not ask(both, host).leases
    both.plane.set_license_state(ROOT, Change(), "here", "reinstate")
    (lease,) = ask(both, host).leases
    assert (lease.license, lease.generation) == ("here", 1)  # the token that hosts have
    both.apply(license("here", grace=5))
    (lease,) = ask(both, host).leases
    assert lease.generation == 4
    both.plane.set_license_state(ROOT, Change(), "here", "revoke")
    assert not ask(both, host).leases


def test_a_draining_host_gets_no_lease_and_may_speak(world: World) -> None:
    host = world.host()
    world.plane.update_host(ROOT, Change(), host.id, labels={}, status=HostStatus.DRAINING)
    host.connect()
    with pytest.raises(PlaneError) as error:
        world.plane.lease(host.id, KEY, "boot", NONCE)
    assert error.value.code is ExitCode.REFUSED


def test_nonces_that_are_none(world: World) -> None:
    host = world.host()
    for nonce, boot in ((b"", "b"), (b"n" * 17, "b"), (NONCE, "b" * 1000)):
        with pytest.raises(PlaneError) as error:
            world.plane.lease(host.id, KEY, boot, nonce)
        assert error.value.code is ExitCode.USAGE


def test_changes_of_hosts_are_announced(both: World) -> None:
    cursor = both.plane.fleet_changes(None).cursor
    host = both.host(org="acme")
    changes = both.plane.fleet_changes(cursor)
    assert changes.host_ids == (host.id,)
    assert both.plane.fleet_changes(changes.cursor).host_ids == ()
    both.plane.update_host(ROOT, Change(), host.id, labels={"region": "eu-2"})
    assert both.plane.fleet_changes(changes.cursor).host_ids == (host.id,)
    state = both.plane.host_state(host.id)
    assert state.view == View(org="acme", region="eu-2") == both.plane.view_of(host.id)
    assert state.assignment_sequence == 2


def test_presence(both: World) -> None:
    host = both.host()
    assert not both.plane.get_host(ROOT, host.id).connected
    host.connect()
    assert both.plane.get_host(ROOT, host.id).connected
    both.plane.record_progress([Progress(host.id, 7), Progress(host.id, 8)])
    found = both.plane.get_host(ROOT, host.id)
    assert (found.acked_revision, found.last_nack) == (8, "")
    both.clock.pass_s(1)
    both.plane.record_progress([Progress(host.id, 8, "POLICY: user \x1b unknown")])
    found = both.plane.get_host(ROOT, host.id)
    assert found.last_nack == "POLICY: user ? unknown"
    assert any("refused" in one for one in found.drift)
    both.plane.close_stream(host.id)
    assert not both.plane.get_host(ROOT, host.id).connected
    host.connect()
    both.clock.pass_s(91)  # a replica that died says nothing more
    assert not both.plane.get_host(ROOT, host.id).connected
