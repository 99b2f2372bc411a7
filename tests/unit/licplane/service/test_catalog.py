# SPDX-License-Identifier: Apache-2.0
"""Applying documents: idempotent, all or none, with differences, etags, request ids, pruning."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.unit.licplane.service.world import ROOT, World, binding, license, resource

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.service.requests import Change, Document, LiveReport, PageRequest, Report
from licplane.service.values import Kind, View
from lictoken.revocation import verify_revocation
from lictoken.trust import TrustStore
from lictoken.verify import verify_license

pytest_plugins = ["tests.support.postgres"]
ACME = View(org="acme")


def test_apply_puts_documents_once(both: World) -> None:
    documents = (resource(), binding(), license())
    first = both.apply(*documents)
    assert [one.action for one in first.differences] == ["create"] * 3
    assert first.changed
    assert first.revision == both.plane.revision
    again = both.apply(*documents)
    assert not again.changed
    assert again.revision == 0
    assert [one.action for one in again.differences] == ["none"] * 3
    assert both.plane.revision == first.revision
    state = both.plane.view_snapshot(ACME)
    payloads = {(one.kind, one.name): one.payload for one in state.objects}
    assert payloads[Kind.BINDING, "b"] == (
        b'{"license":"acme-db","name":"b","selectors":["unix:uid:1000"]}'
    )
    trust = TrustStore.from_bytes(both.plane.trust())
    signed = verify_license(payloads[Kind.LICENSE, "acme-db"], trust)
    assert (signed.number, signed.generation, signed.entitlements[0].actions) == (
        1,
        1,
        ("connect",),
    )
    assert first.tokens == (payloads[Kind.LICENSE, "acme-db"].decode(),)
    assert both.plane.verify_head().intact


def test_a_change_is_told_line_by_line(world: World) -> None:
    world.apply(resource())
    result = world.apply(resource(mode="observe"))
    (difference,) = result.differences
    assert difference.action == "update"
    assert '-  "mode": "enforce",' in difference.lines
    assert '+  "mode": "observe",' in difference.lines
    assert not any(line.startswith(("---", "+++")) for line in difference.lines)


def test_a_license_that_says_something_else_is_issued_again(world: World) -> None:
    world.apply(license())
    result = world.apply(license(grace="15m"))
    trust = TrustStore.from_bytes(world.plane.trust())
    signed = verify_license(result.tokens[0].encode(), trust)
    assert (signed.number, signed.generation, signed.grace_s) == (1, 2, 900)
    assert world.apply(license(grace=900)).changed is False
    # Its start stays where it was: it is not part of what the document says.
    before = signed.not_before_s
    world.clock.pass_s(3600)
    later = world.apply(license(grace=901))
    assert verify_license(later.tokens[0].encode(), trust).not_before_s == before


def test_all_or_none(world: World) -> None:
    with pytest.raises(PlaneError) as error:
        world.apply(resource(), binding(selectors=["uid:5"]), license(expires="soon"))
    assert error.value.code is ExitCode.USAGE
    assert "2 problems" in str(error.value)
    assert "selectors[0]" in str(error.value)
    assert world.plane.list_objects(ROOT, "", PageRequest()).items == ()


def test_a_dry_run_does_nothing_and_gives_no_token(both: World) -> None:
    revision = both.plane.revision
    entries = both.actions()
    result = both.apply(resource(), license(), change={"dry_run": True})
    assert result.changed
    assert result.dry_run
    assert [one.action for one in result.differences] == ["create", "create"]
    assert result.tokens == ()
    assert result.revision == 0
    assert both.plane.revision == revision
    assert both.actions() == entries
    # Nor is a license number spent on it.
    assert both.apply(license()).changed


def test_etags(world: World) -> None:
    etag = world.apply(resource()).etag
    assert etag
    world.apply(resource(description="other"), change={"etag": etag})
    with pytest.raises(Conflict):
        world.apply(resource(description="third"), change={"etag": etag})
    listed = world.plane.list_objects(ROOT, "resource", PageRequest()).items[0]
    held = Document("resource", "db", resource(description="third").json, listed.etag)
    assert world.apply(held).changed
    with pytest.raises(Conflict):
        world.apply(Document("license", "acme-db", license().json, "g1"))


def test_a_request_id_is_answered_once(both: World) -> None:
    first = both.apply(license(), change={"request_id": "r1"})
    again = both.apply(license(), change={"request_id": "r1"})
    assert again == first
    assert both.actions().count("license.issue") == 1
    with pytest.raises(Conflict, match="used for something else"):
        both.apply(resource(), change={"request_id": "r1"})
    # A dry run remembers nothing.
    both.apply(resource(), change={"request_id": "r2", "dry_run": True})
    assert both.apply(resource(), change={"request_id": "r2"}).revision > 0


def test_pruning_only_when_told(world: World) -> None:
    world.apply(resource(), resource("web", destinations=[{"cidr": "10.9.0.0/16"}]), binding())
    world.apply(license(), license("acme-web", entitlements=[{"resource": "web"}]))
    assert not world.apply(resource(), binding(), license()).changed
    result = world.apply(resource(), binding(), license(), prune=True)
    gone = {(one.kind, one.name) for one in result.differences if one.action == "delete"}
    assert gone == {("resource", "web"), ("license", "acme-web")}
    kinds = {
        (one.kind, one.name) for one in world.plane.list_objects(ROOT, "", PageRequest()).items
    }
    assert kinds == {("resource", "db"), ("binding", "b"), ("license", "acme-db")}
    trust = TrustStore.from_bytes(world.plane.trust())
    assert verify_revocation(result.tokens[0].encode(), trust).license == "acme-web"
    assert not world.apply(resource(), binding(), license(), prune=True).changed
    with pytest.raises(PlaneError, match="would delete everything"):
        world.apply(prune=True)


def test_deleting_by_name(world: World) -> None:
    world.apply(resource(), binding(), license())
    result = world.apply(
        Document("binding", "b", ""), Document("license", "acme-db", ""), delete=True
    )
    assert [one.action for one in result.differences] == ["delete", "delete"]
    again = world.apply(Document("binding", "b", ""), Document("license", "x", ""), delete=True)
    assert [one.action for one in again.differences] == ["none", "none"]
    assert world.plane.view_changes(ACME, result.revision - 1).objects[0].kind is Kind.REVOCATION


def test_license_states(both: World) -> None:
    both.apply(license())

    def state(action: str) -> bool:
        result = both.plane.set_license_state(ROOT, Change(), "acme-db", action)
        both.plane.refresh()
        return result.changed

    assert state("suspend")
    assert not state("suspend")
    assert state("reinstate")
    with pytest.raises(PlaneError, match="not suspended"):
        state("reinstate")
    assert state("revoke")
    assert not state("revoke")
    with pytest.raises(PlaneError, match="final"):
        state("suspend")
    with pytest.raises(PlaneError, match="acme-db"):
        both.plane.set_license_state(ROOT, Change(), "acme-dc", "revoke")
    # The terms it had are no reason to complain; others would lift the revocation.
    assert not both.apply(license()).changed
    with pytest.raises(PlaneError, match="revoked"):
        both.apply(license(grace=5))


def test_what_a_revocation_would_cut(world: World) -> None:
    world.apply(resource(), binding(), license())
    host = world.host(org="acme")
    live = (LiveReport("acme-db", "db", "unix:uid:1000", 3), LiveReport("other", "x", "host", 1))
    world.plane.record_report(host.id, report(live=live))
    world.clock.pass_s(2)
    dry = world.plane.set_license_state(ROOT, Change(dry_run=True), "acme-db", "revoke")
    assert [(one.license, one.sockets, one.report_age_ms) for one in dry.impact] == [
        ("acme-db", 3, 2000)
    ]
    # Another binding of the same workload keeps its sockets open.
    world.apply(binding("b2"))
    keeps = world.apply(Document("binding", "b", ""), delete=True, change={"dry_run": True})
    assert keeps.impact == ()
    world.apply(Document("binding", "b2", ""), delete=True)
    cuts = world.apply(binding(selectors=["unix:uid:7"]), change={"dry_run": True})
    assert [one.hostname for one in cuts.impact] == ["db-1"]
    narrower = world.apply(license(scope={"org": "other"}), change={"dry_run": True})
    assert len(narrower.impact) == 1
    assert world.apply(license(expires="2101-01-01T00:00:00Z")).impact == ()
    really = world.plane.set_license_state(ROOT, Change(), "acme-db", "revoke")
    assert [one.sockets for one in really.impact] == [3]


def test_lists_by_page(world: World) -> None:
    world.apply(*(binding(f"b{at}") for at in range(5)), resource(), license())
    names: list[str] = []
    page = PageRequest(size=2)
    while True:
        found = world.plane.list_objects(ROOT, "", page)
        assert len(found.items) <= 2
        names += [one.name for one in found.items]
        if not found.next_token:
            break
        page = PageRequest(2, found.next_token)
    assert names == ["db", "b0", "b1", "b2", "b3", "b4", "acme-db"]
    document = json.loads(world.plane.list_objects(ROOT, "license", PageRequest()).items[0].json)
    assert document["id"] == "acme-db"
    assert not world.apply(Document("license", "", json.dumps(document))).changed


def test_changes_at_once_are_one_after_the_other(both: World) -> None:
    def put(at: int) -> int:
        change = Change()
        return both.plane.apply(ROOT, change, [binding(f"b{at}")]).revision

    with ThreadPoolExecutor(4) as pool:
        revisions = list(pool.map(put, range(12)))
    assert len(set(revisions)) == 12
    assert both.plane.verify_head().intact
    assert both.plane.verify_audit(ROOT).intact


@pytest.mark.parametrize(
    ("one", "other", "refused"),
    [
        ({"cidr": "10.0.0.0/8"}, {"cidr": "10.0.0.0/8"}, True),
        ({"cidr": "any"}, {"cidr": "::/0", "protocol": "udp"}, True),
        ({"cidr": "::ffff:10.0.0.0/104"}, {"cidr": "10.0.0.0/8", "protocol": "icmp"}, True),
        (
            {"cidr": "10.0.0.0/8", "ports": ["80-90"]},
            {"cidr": "10.0.0.0/8", "ports": ["85-95"]},
            True,
        ),
        ({"cidr": "10.0.0.0/8", "ports": ["80-90"]}, {"cidr": "10.0.0.0/8", "ports": [85]}, False),
        ({"cidr": "10.0.0.0/8"}, {"cidr": "10.0.0.0/9"}, False),
        ({"cidr": "10.0.0.1"}, {"cidr": "10.0.0.2"}, False),
        (
            {"cidr": "10.0.0.0/8", "ports": ["80"]},
            {"cidr": "10.0.0.0/8", "protocol": "icmp"},
            False,
        ),
        (
            {"cidr": "10.0.0.0/8", "protocol": "tcp"},
            {"cidr": "10.0.0.0/8", "protocol": "udp"},
            False,
        ),
    ],
)
def test_resources_that_collide(
    world: World, one: dict[str, object], other: dict[str, object], refused: bool
) -> None:
    east = {"org": "acme", "regions": ["east"]}
    west = {"org": "acme", "regions": ["west"]}
    world.apply(resource("a", destinations=[one], scope=east))
    world.apply(resource("b", destinations=[other], scope=west))  # they never meet
    if not refused:
        world.apply(resource("b", destinations=[other]))
        return
    with pytest.raises(PlaneError, match="resource b: it and a both name"):
        world.apply(resource("b", destinations=[other]))
    with pytest.raises(PlaneError, match="resource a: it and b both name"):
        world.apply(resource("a", destinations=[one], scope={"org": "acme"}))
    with pytest.raises(PlaneError, match="only in case"):
        world.apply(resource("A", destinations=[{"cidr": "192.0.2.1"}]))


def report(**fields: object) -> Report:
    base: dict[str, object] = {
        "json": '{"sequence":"1"}',
        "at_unix_ms": 0,
        "boot_id": "boot",
        "hostname": "db-1",
        "agent_version": "0.1",
        "kernel_release": "6.1",
        "mode": "enforce",
        "revision": 1,
    }
    return Report(**{**base, **fields})  # type: ignore[arg-type]
