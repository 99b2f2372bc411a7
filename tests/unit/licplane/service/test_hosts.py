# SPDX-License-Identifier: Apache-2.0
"""The fleet as administrators see it: lists, labels, drift, shadow usage, telemetry."""

from __future__ import annotations

import tomllib

import pytest
from tests.unit.licplane.service.world import ROOT, World, license, resource

from licplane.errors import Conflict, Exhausted, ExitCode, PlaneError
from licplane.service.requests import (
    Change,
    HookReport,
    LiveReport,
    MapReport,
    PageRequest,
    Progress,
    Report,
    ShadowReport,
)
from licplane.service.values import HostStatus

pytest_plugins = ["tests.support.postgres"]


def report(**fields: object) -> Report:
    base: dict[str, object] = {
        "json": '{"state":{"mode":"enforce"}}',
        "at_unix_ms": 0,
        "boot_id": "boot",
        "hostname": "db-1",
        "agent_version": "0.1",
        "kernel_release": "6.1",
        "mode": "enforce",
        "revision": 1,
    }
    return Report(**{**base, **fields})  # type: ignore[arg-type]


def shadow(
    selector: str = "systemd:unit:etl.service", count: int = 1, **more: object
) -> ShadowReport:
    base: dict[str, object] = {
        "resource": "db",
        "selector": selector,
        "executable": "/usr/bin/etl",
        "user": "etl",
        "count": count,
        "first_unix_ms": 1000,
        "last_unix_ms": 2000,
    }
    return ShadowReport(**{**base, **more})  # type: ignore[arg-type]


def test_hosts_by_label_and_page(both: World) -> None:
    hosts = [both.host(f"h{at}", org="acme", region=f"eu-{at % 2}") for at in range(5)]
    assert {one.host_id for one in both.plane.list_hosts(ROOT, {}, PageRequest()).items} == {
        host.id for host in hosts
    }
    found: list[str] = []
    page = PageRequest(size=2)
    while True:
        part = both.plane.list_hosts(ROOT, {"region": "eu-0"}, page)
        found += [one.hostname for one in part.items]
        if not part.next_token:
            break
        page = PageRequest(2, part.next_token)
    assert sorted(found) == ["h0", "h2", "h4"]
    for token in ("x", "W10", "a" * 10_000, "bnVsbA"):
        with pytest.raises(PlaneError) as error:
            both.plane.list_hosts(ROOT, {}, PageRequest(2, token))
        assert error.value.code is ExitCode.USAGE


def test_one_host(world: World) -> None:
    host = world.host("db-1")
    assert world.plane.get_host(ROOT, "db-1").host_id == host.id
    assert world.plane.get_host(ROOT, host.id).certificate_not_after_unix_ms > world.clock.now_ms
    other = world.host("db-2")
    world.host("db-3")
    assert world.plane.get_host(ROOT, "db-2").host_id == other.id
    for name in ("nobody", "' OR 1=1", "../x", "%"):
        with pytest.raises(PlaneError) as error:
            world.plane.get_host(ROOT, name)
        assert error.value.code is ExitCode.NOT_FOUND
    for name in ("", "a\0", "x" * 10_000_000):
        with pytest.raises(PlaneError) as error:
            world.plane.get_host(ROOT, name)
        assert error.value.code is ExitCode.USAGE


def test_labels(both: World) -> None:
    host = both.host(org="acme", region="eu-1")
    etag = both.plane.get_host(ROOT, host.id).etag
    wanted = {"region": "", "tier": "gold"}
    dry = both.plane.update_host(ROOT, Change(dry_run=True), host.id, labels=wanted)
    assert dry.changed
    assert both.plane.get_host(ROOT, host.id).etag == etag
    result = both.plane.update_host(ROOT, Change(etag=etag, reason="moved"), host.id, labels=wanted)
    assert result.changed
    assert any('"tier": "gold"' in line for line in result.differences[0].lines)
    assert dict(both.plane.get_host(ROOT, host.id).labels) == {"org": "acme", "tier": "gold"}
    assert not both.plane.update_host(ROOT, Change(), host.id, labels=wanted).changed
    with pytest.raises(Conflict):
        both.plane.update_host(ROOT, Change(etag=etag), host.id, labels={"tier": "x"})
    entry = both.plane.list_audit(ROOT, 0, 100)[-1]
    assert (entry.action, entry.target, entry.reason) == ("host.label", host.id, "moved")


@pytest.mark.parametrize(
    "labels",
    [
        {"A": "b"},
        {"a b": "c"},
        {"": "c"},
        {"a\0": "c"},
        {"a": "'; DROP TABLE hosts; --"},
        {"a": "x" * 10_000_000},
        {"a": "../.."},
        {"a": "\u202e"},
        {f"l{at}": "x" for at in range(100)},
    ],
)
def test_hostile_labels(world: World, labels: dict[str, str]) -> None:
    host = world.host()
    with pytest.raises(PlaneError) as error:
        world.plane.update_host(ROOT, Change(), host.id, labels=labels)
    assert error.value.code is ExitCode.USAGE
    assert len(str(error.value)) < 1000
    with pytest.raises(PlaneError):
        world.plane.list_hosts(ROOT, labels, PageRequest())
    with pytest.raises(PlaneError):
        world.plane.create_join_token(ROOT, Change(), labels=labels, uses_max=1, ttl_s=60)


def test_eviction_ends_certificates_and_tells_what_it_cuts(world: World) -> None:
    host = world.host()
    live = (LiveReport("acme-db", "db", "host", 4), LiveReport("", "db", "host", 9))
    world.plane.record_report(host.id, report(live=live))
    result = world.plane.update_host(ROOT, Change(), host.id, labels={}, status=HostStatus.EVICTED)
    assert [one.sockets for one in result.impact] == [4]
    assert world.plane.get_host(ROOT, host.id).certificate_not_after_unix_ms == 0
    assert world.actions()[-1] == "host.evicted"


def test_a_label_that_takes_licenses_away(world: World) -> None:
    world.apply(resource(), license())
    host = world.host(org="acme")
    world.plane.record_report(host.id, report(live=(LiveReport("acme-db", "db", "host", 4),)))
    result = world.plane.update_host(ROOT, Change(), host.id, labels={"org": "other"})
    assert [one.license for one in result.impact] == ["acme-db"]


def test_drift(world: World) -> None:
    host = world.host(org="acme")
    assert world.plane.get_host(ROOT, host.id).drift == ("has not reported yet",)
    world.plane.record_report(host.id, report(labels={"org": "acme"}))
    assert world.plane.get_host(ROOT, host.id).drift == ()
    assert world.plane.get_host(ROOT, host.id).report_json == '{"state":{"mode":"enforce"}}'
    world.plane.record_report(
        host.id,
        report(
            hooks=(HookReport("connect4", True), HookReport("sendmsg6", False, detail="no such")),
            maps=(MapReport("rules", b"a", b"a"), MapReport("licenses", b"a", b"b")),
            degraded=("clock \x1b unknown",),
            break_glass_until_unix_ms=world.clock.now_ms + 1000,
            labels={"org": "other"},
            refused_licenses={"acme-db": "CONDITION"},
        ),
    )
    drift = "\n".join(world.plane.get_host(ROOT, host.id).drift)
    for words in (
        "sendmsg6 no such",
        "map licenses",
        "clock ? unknown",
        "break-glass",
        "other labels in force: org",
        "acme-db grants nothing: CONDITION",
    ):
        assert words in drift
    assert "connect4" not in drift
    assert "rules" not in drift
    world.clock.pass_s(3600)
    assert any("last reported" in one for one in world.plane.get_host(ROOT, host.id).drift)
    world.plane.record_progress([Progress(host.id, 99)])
    assert any("older copy" in one for one in world.plane.get_host(ROOT, host.id).drift)


def test_links_that_were_replaced_are_drift(world: World) -> None:
    host = world.host()

    def found(boot_id: str, **links: int) -> str:
        hooks = tuple(HookReport(hook, True, link_id) for hook, link_id in links.items())
        world.plane.record_report(host.id, report(hooks=hooks, boot_id=boot_id))
        return "\n".join(world.plane.get_host(ROOT, host.id).drift)

    assert found("one", connect4=1, sendmsg4=2) == ""
    assert found("one", connect4=1, sendmsg4=2) == ""
    drift = found("one", connect4=9, sendmsg4=2)
    assert "hook connect4 was taken off and put back" in drift
    assert "sendmsg4" not in drift
    assert "connect4" in found("one", connect4=9, sendmsg4=2)  # and stays there to be seen
    assert found("two", connect4=3, sendmsg4=4) == ""  # a boot makes new ones


def test_old_shadow_usage_is_forgotten(both: World) -> None:
    host = both.host()
    later = both.clock.now_ms + 500 * 86_400_000  # its clock is ahead
    uses = (shadow("unix:uid:5", last_unix_ms=both.clock.now_ms), shadow(last_unix_ms=later))
    both.plane.record_report(host.id, report(shadow=uses))
    both.plane.housekeeping()
    assert len(both.plane.shadow_usage(ROOT, PageRequest()).items) == 2
    both.clock.pass_s(91 * 86_400)
    both.plane.housekeeping()
    assert both.plane.shadow_usage(ROOT, PageRequest()).items == ()


def test_shadow_usage_of_the_fleet(both: World) -> None:
    one, two = both.host("h1"), both.host("h2")
    both.plane.record_report(one.id, report(shadow=(shadow(count=3), shadow("unix:uid:5"))))
    both.plane.record_report(one.id, report(shadow=(shadow(count=3),)))  # totals: sent again
    both.plane.record_report(two.id, report(shadow=(shadow(count=4, last_unix_ms=9000),)))
    found = both.plane.shadow_usage(ROOT, PageRequest()).items
    assert [(line.selector, line.hosts, line.count) for line in found] == [
        ("systemd:unit:etl.service", 2, 7),
        ("unix:uid:5", 1, 1),
    ]
    assert found[0].last_unix_ms == 9000
    (binding,) = tomllib.loads(found[0].suggestion)["binding"]
    assert binding["license"] == "LICENSE"
    assert "issue one first" in found[0].suggestion
    both.apply(resource(), license("short", expires="2027-06-01T00:00:00Z"), license("long"))
    first = both.plane.shadow_usage(ROOT, PageRequest(size=1))
    (binding,) = tomllib.loads(first.items[0].suggestion)["binding"]
    assert binding["license"] == "long"
    assert binding["selectors"] == ["systemd:unit:etl.service"]
    assert binding["resources"] == ["db"]
    rest = both.plane.shadow_usage(ROOT, PageRequest(1, first.next_token))
    assert [line.selector for line in rest.items] == ["unix:uid:5"]
    assert rest.next_token == ""
    # What is suggested can be applied as it stands.
    import json

    from licplane.service.requests import Document

    assert both.apply(Document("binding", "", json.dumps(binding))).changed


def test_hostile_reports(both: World) -> None:
    host = both.host()
    odd = shadow("unix:path:/tmp/\x1b\0\ud800\"]'\n", resource="a\0b", count=2**70, user="x" * 9999)
    both.plane.record_report(host.id, report(shadow=(odd,), json="\ud800\0"))
    (line,) = both.plane.shadow_usage(ROOT, PageRequest()).items
    assert line.selector.isprintable()
    assert line.count == 2**63 - 1
    assert tomllib.loads(line.suggestion)
    with pytest.raises(Exhausted):
        both.plane.record_report(host.id, report(json="x" * 2_000_000))
    with pytest.raises(Exhausted):
        both.plane.record_report(host.id, report(shadow=(shadow(),) * 1001))
