# SPDX-License-Identifier: Apache-2.0
"""Labels, copies of a machine, and what the control plane knows of its hosts."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from tests.system.harness.controlplane import ControlPlane, Host, binding, license
from tests.system.harness.scene import HOLDER, STRANGER, eventually

MakeHost = Callable[..., Host]


def test_a_changed_label_moves_licensing_both_ways(host: Host) -> None:
    """The region's license goes with the region, within seconds, live sockets included."""
    plane, name = host.plane, host.id
    plane.do("host", "label", name, "region=eu-1")
    scope = {"org": "acme", "regions": ["eu-1"]}
    plane.apply(license("regional", scope=scope), binding("regional", STRANGER))
    host.until("ok", STRANGER)
    with host.program(STRANGER) as (program, report):
        assert report["outcome"] == "ok"
        plane.do("host", "label", name, "region=us-1")
        eventually(lambda: host.connect(STRANGER) != "ok", "gone with the region")
        assert program.process.stdin is not None
        program.process.stdin.write(b"x\n")
        program.process.stdin.flush()
        assert program.line() != {"outcome": "ok"}
    # Not only refused: the host does not even see it any more.
    assert "regional" not in {row["id"] for row in host.ask("license", "list")["licenses"]}
    assert host.connect(HOLDER) == "ok"
    plane.do("host", "label", name, "region=eu-1")
    host.until("ok", STRANGER)
    told = [e for e in host.agent.events() if "us-1" in str(e)]
    assert told, "the change of labels is on the record"


def test_labels_of_the_control_plane_replace_those_of_the_file(
    plane: ControlPlane, make_host: MakeHost
) -> None:
    host = make_host(settings='labels = { region = "us-9", environment = "test" }\n')
    host.enroll(plane.join(region="eu-1"))
    host.licensed()
    here = license("here", scope={"org": "acme", "regions": ["eu-1"]})
    plane.apply(here, binding("here", STRANGER))
    host.until("ok", STRANGER)


def test_a_copied_machine_is_found_and_mended(plane: ControlPlane, make_host: MakeHost) -> None:
    original = make_host()
    original.enroll()
    original.licensed()
    name = original.id
    original.agent.stop()
    copy = make_host()
    copy.agent.stop()
    shutil.rmtree(copy.agent.folder / "state")
    shutil.copytree(original.agent.folder / "state", copy.agent.folder / "state")
    copy.agent.start()  # it is the host now: nobody can tell yet
    eventually(lambda: copy.control["state"] == "connected", "the copy connects")
    original.agent.start()  # with a counter that was superseded
    eventually(lambda: plane.host(name)["status"] == "cloned", "the clone is found")
    for each in (original, copy):
        eventually(lambda each=each: each.told("cloned"), "both are told")
    actions = {row["action"] for row in plane.ask("audit", "list")["entries"]}
    assert any("clon" in action for action in actions)
    # The documented command mends it.
    join = plane.ask("host", "split", name)["join"]
    kept = original.ask("enroll", "--again", join)
    new = copy.ask("enroll", "--new", join)
    assert kept["host_id"] == name
    assert new["host_id"] != name
    for each in (original, copy):
        eventually(lambda each=each: each.control["state"] == "connected", "connected")
    assert {row["status"] for row in plane.hosts().values()} == {"active"}
    original.until("ok")


def test_the_control_plane_knows_the_state_of_its_hosts(host: Host) -> None:
    plane, name = host.plane, host.id
    host.connect(HOLDER)
    host.connect(STRANGER)

    def reported() -> bool:
        rows = (plane.host(name)["report"] or {}).get("decisions") or ()
        told = {(row.get("verdict"), row.get("resource")) for row in rows}
        return {("allow", "db"), ("deny", "db")} <= told

    eventually(reported, "a report with both decisions")
    found = plane.host(name)
    state = found["report"]["state"]
    hooks = [each for each in state["hooks"] if each.get("attached")]
    assert any(each.get("link_id") for each in hooks)
    assert all(each["wanted"] == each["found"] for each in state["maps"])
    assert state["mode"] == "enforce"
    assert {each["fact"] for each in state["posture"]} >= {"kernel"}
    assert found["drift"] == []


def test_a_detached_program_is_seen_as_drift(host: Host) -> None:
    plane, name = host.plane, host.id
    eventually(lambda: plane.host(name)["report"], "a report")
    assert plane.host(name)["drift"] == []
    host.agent.policy(
        '[[resource]]\nname = "local"\nkind = "network"\n'
        'destinations = [{ cidr = "192.0.2.9/32" }]\n'
    )
    plane.apply(host.resource("local", destinations=[{"cidr": "192.0.2.8/32"}]))
    eventually(lambda: plane.host(name)["drift"], "drift: it refuses a revision")
    links = sorted((host.agent.bpffs / "links").rglob("*connect4*"))
    assert links
    links[0].unlink()
    eventually(lambda: "connect4" in str(plane.host(name)["drift"]), "drift: a link is gone")


def test_shadow_usage_of_all_hosts_and_what_would_allow_it(
    plane: ControlPlane, make_host: MakeHost
) -> None:
    hosts = [make_host(), make_host()]
    join = plane.join(uses=2)
    for host in hosts:
        host.enroll(join)
    first = hosts[0]
    observed = first.resource(mode="observe")
    ports = [str(each.server.port) for each in hosts]
    destinations = [{"cidr": "127.0.0.1/32", "ports": ports, "protocol": "tcp"}]
    plane.apply(observed.but(destinations=destinations), binding(), license())

    def listed() -> list[dict[str, object]]:
        # Again and again: before the policy is there, nobody looks.
        for host in hosts:
            assert host.connect(STRANGER) == "ok"  # observed, not refused
        rows = plane.ask("shadow")["usage"]
        return [r for r in rows if r["resource"] == "db" and r["hosts"] == 2]

    [row] = eventually(listed, "two hosts in one line")
    assert row["resource"] == "db"
    assert "[[binding]]" in str(row["suggestion"])
    assert 'license = "acme-db"' in str(row["suggestion"])
    # What it suggests does allow it.
    file = plane.folder / "suggested.toml"
    file.write_text(str(row["suggestion"]))
    plane.apply(observed.but(destinations=destinations, mode="enforce"))
    first.until("ENOKEY", STRANGER)
    plane.do("apply", "-f", file)
    first.until("ok", STRANGER)
