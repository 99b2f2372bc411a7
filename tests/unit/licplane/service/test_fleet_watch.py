# SPDX-License-Identifier: Apache-2.0
"""The fleet in numbers, on both databases: what monitoring is told is what administrators see."""

from __future__ import annotations

import json

from tests.unit.licplane.service.world import (
    ROOT,
    SETTINGS,
    World,
    csr,
    license,
    new_key,
    resource,
)

from licplane.issuer.keyring import NO_KEYS
from licplane.service.fleet_watch import by_standing
from licplane.service.plane import Plane
from licplane.service.requests import Change, Document, Machine, Progress
from licplane.service.values import HostStatus

pytest_plugins = ["tests.support.postgres"]


def test_hosts_are_counted_as_they_are(both: World) -> None:
    one, _silent, three = both.host("db-1"), both.host("db-2"), both.host("db-3")
    one.connect()
    both.plane.record_progress([Progress(one.id, both.plane.revision)])
    both.plane.update_host(ROOT, Change(), three.id, labels={}, status=HostStatus.EVICTED)
    counts = both.plane.watch.read().counts
    assert counts.hosts == {
        (HostStatus.ACTIVE, True): 1,
        (HostStatus.ACTIVE, False): 1,
        (HostStatus.EVICTED, False): 1,
    }
    assert (counts.silent, counts.refusing) == (0, 0)

    both.apply(resource())
    both.plane.record_progress([Progress(one.id, 1, "the policy is too large")])
    assert both.plane.watch.read().counts.refusing == 1
    both.plane.record_progress([Progress(one.id, both.plane.revision)])
    counts = both.plane.watch.read().counts
    assert counts.refusing == 0
    assert counts.revision == both.plane.revision

    both.clock.pass_s(3600)
    counts = both.plane.watch.read().counts
    assert counts.hosts[HostStatus.ACTIVE, False] == 2
    assert counts.silent == 2, "also the one that never said a word; not the evicted one"


def test_a_host_without_a_network_is_neither_silent_nor_adrift(both: World) -> None:
    both.plane.admit_offline(
        ROOT,
        Change(),
        csr=csr(new_key()),
        machine=Machine("island", "c" * 32, "boot", "0.1", "6.1"),
        labels={"org": "acme"},
        certificate_ttl_s=3600,
        lease_ttl_s=3600,
    )
    both.host("db-1")
    both.clock.pass_s(3600)
    assert both.plane.money.keep()
    counts = both.plane.watch.read().counts
    assert counts.hosts == {(HostStatus.ACTIVE, False): 2}
    assert (counts.silent, counts.drifting) == (1, 0)


def test_licenses_by_end_and_standing_follow_the_catalog(both: World) -> None:
    both.apply(resource(), license("late"), license("early", expires="2099-01-01T00:00:00Z"))
    state = both.plane.watch.read()
    assert [one.jti for one in state.licenses] == ["early", "late"]
    assert by_standing(state.licenses, state.now_ms)["active"] == 2
    both.plane.set_license_state(ROOT, Change(), "early", "revoke")
    both.plane.refresh()
    state = both.plane.watch.read()
    assert by_standing(state.licenses, state.now_ms) == {
        "active": 1,
        "suspended": 0,
        "revoked": 1,
        "expired": 0,
    }
    far_ms = 5_000_000_000_000
    assert by_standing(state.licenses, far_ms)["expired"] == 2
    assert state.authority_ends_unix_ms > state.now_ms


def test_who_has_no_keys_reads_all_but_the_authority(both: World) -> None:
    plane = Plane(both.store, NO_KEYS, SETTINGS, now_ms=both.clock)
    state = plane.watch.read()
    assert state.authority_ends_unix_ms == 0
    assert plane.watch.answers() == state.counts.revision


def test_budgets_are_ratios_and_worked_out_once_a_minute(both: World) -> None:
    assert both.plane.watch.read().budgets == ()
    text = {"name": "year", "meters": ["cpu_ns"], "unit": "core-hour", "amount": 1000}
    document = Document("budget", "year", json.dumps(text))
    both.plane.money.apply(ROOT, Change(), (document,), delete=False)
    assert both.plane.watch.read().budgets == (), "that of a moment ago"
    both.clock.pass_s(61)
    found = both.plane.watch.read().budgets
    assert [(one.name, one.used) for one in found] == [("year", 0.0)]
