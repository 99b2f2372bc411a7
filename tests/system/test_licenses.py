# SPDX-License-Identifier: Apache-2.0
"""`licagent license` and `licagent run` on a real daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.system.harness.scene import COMMAND, HOLDER, STRANGER, Scene, eventually

from licagent.cli.exits import DETACHED
from lictoken.claims import Condition, Entitlement, Limit


def test_a_license_is_added_listed_shown_and_removed(scene: Scene) -> None:
    entitlement = Entitlement(
        "db",
        ("connect",),
        (Limit("egress_bytes", 5, "day", "deny"),),
        (Condition("moon", ("full",)),),
    )
    text = scene.agent.token("shown", [], entitlements=(entitlement, Entitlement("web")))
    result = scene.cli("license", "add", "-", "--json", stdin=text)
    assert result.status == 0, result
    [added] = result.json["licenses"]
    assert (added["id"], added["generation"], added["state"]) == ("shown", 1, "valid")
    assert result.json["changed"] is True
    again = scene.cli("license", "add", scene.file("again.lic", text), "--json").json
    assert again["changed"] is False
    rows = {row["id"]: row for row in scene.ask("license", "list")["licenses"]}
    assert rows["shown"]["resources"] == ["db", "web"]
    found = scene.ask("license", "show", "shown")["license"]
    assert found["issuer"] == "test-issuer"
    assert Path(found["file"]).read_text() == text
    assert found["bindings"] == []
    [limited, free] = found["entitlements"]
    [condition] = limited["conditions"]
    assert (condition["kind"], condition["values"]) == ("moon", ["full"])
    assert condition["holds"] is False
    assert limited["limits"] == [
        {"meter": "egress_bytes", "limit": 5, "window": "day", "on_exhaustion": "deny"}
    ]
    assert len(limited["refused"]) == 2  # this version holds neither, so it grants nothing
    assert free["refused"] == []
    words = scene.cli("license", "show", "shown").out
    assert "moon is full (does not hold: not known here)" in words
    assert "db is not granted" in words
    removed = scene.ask("license", "remove", "shown")
    assert removed["changed"] is True
    assert not Path(found["file"]).exists()
    assert scene.ask("license", "remove", "shown")["changed"] is False
    assert scene.cli("license", "show", "shown").status == 6


def test_removing_cuts_and_adding_again_brings_back(scene: Scene) -> None:
    text = scene.agent.token("brief", ["db"])
    scene.cli("license", "add", "-", stdin=text)
    scene.agent.policy(scene.policy_text("brief"))
    try:
        with scene.program() as (program, report):
            assert report["outcome"] == "ok"
            removed = scene.ask("license", "remove", "brief")
            assert removed["sockets_cut"] == 1
            assert "brief" in removed["warnings"][0]  # its binding is to no license now
            assert program.process.stdin is not None
            program.process.stdin.write(b"x\n")
            program.process.stdin.flush()
            assert program.line() != {"outcome": "ok"}
        assert scene.connect() == "ENOKEY"
        assert scene.cli("status").status == 150
        assert scene.cli("license", "add", "-", stdin=text).status == 0
        assert scene.connect() == "ok"
        assert scene.cli("status").status == 0
    finally:
        scene.agent.policy(scene.policy_text("acme"))


def test_revoked_here_stays_revoked_until_a_newer_generation(scene: Scene) -> None:
    text = scene.agent.token("bad", ["db"])
    scene.cli("license", "add", "-", stdin=text)
    scene.agent.policy(scene.policy_text("bad"))
    try:
        assert scene.connect() == "ok"
        assert scene.cli("license", "revoke", "bad").status == 2  # a reason is needed
        assert scene.cli("license", "revoke", "none", "--reason", "x").status == 6
        revoked = scene.ask("license", "revoke", "bad", "--reason", "ticket 9")
        assert (revoked["changed"], revoked["action"]) == (True, "revoked")
        assert scene.ask("license", "revoke", "bad", "--reason", "again")["changed"] is False
        assert scene.connect() == "EKEYREVOKED"
        assert scene.state_of("bad") == "revoked"
        shown = scene.ask("license", "show", "bad")["license"]["revoked"]
        assert (shown["reason"], shown["by"]) == ("ticket 9", "uid 0")
        scene.ask("license", "remove", "bad")
        assert scene.cli("license", "add", "-", stdin=text).status == 0
        assert scene.connect() == "EKEYREVOKED"
        scene.agent.kill()
        scene.agent.start()
        assert scene.connect() == "EKEYREVOKED"
        newer = scene.agent.token("bad", ["db"])
        assert scene.cli("license", "add", "-", stdin=newer).status == 0
        assert scene.connect() == "ok"
        old = scene.cli("license", "add", "-", stdin=text)
        assert old.status == 7
        assert "[replayed]" in old.err
    finally:
        scene.agent.policy(scene.policy_text("acme"))


def test_the_issuers_statements_count(scene: Scene) -> None:
    scene.agent.issue("stated", ["db"])
    scene.agent.policy(scene.policy_text("stated"))
    try:
        for generation, action, told, outcome in (
            (1, "suspend", "suspended", "EKEYREVOKED"),
            (2, "reinstate", "reinstated", "ok"),
            (3, "revoke", "revoked", "EKEYREVOKED"),
            (4, "reinstate", "reinstated", "EKEYREVOKED"),  # revoked by the issuer is for good
        ):
            path = scene.file("s.rev", scene.agent.statement("stated", action, generation))
            found = scene.ask("license", "revoke", "--statement", path)
            assert (found["changed"], found["action"]) == (True, told)
            assert scene.connect() == outcome
            assert scene.ask("license", "revoke", "--statement", path)["changed"] is False
        assert "test-issuer" in scene.cli("license", "show", "stated").out
        forged = scene.file("f.rev", scene.agent.statement("acme", "revoke")[:-90])
        assert scene.cli("license", "revoke", "--statement", forged).status == 7
        assert scene.state_of("acme") == "valid"
    finally:
        scene.agent.policy(scene.policy_text("acme"))


def test_a_command_runs_under_a_license(scene: Scene) -> None:
    # Without it curl says what is missing.
    refused = scene.curl()
    assert refused.returncode == 7
    assert refused.stdout == b""
    licensed = scene.curl(str(COMMAND), "run", "--license", "acme", "--")
    assert (licensed.returncode, licensed.stdout) == (0, b"licensed")
    event = eventually(
        lambda: [
            row for row in scene.agent.events(verdict="allow") if row["process"]["name"] == "curl"
        ]
    )[-1]
    assert event["binding"] == "licagent run --license acme"
    assert event["process"]["cgroup"].startswith("/licagent.run/acme/")
    assert scene.cli("run", "--license", "none", "--", "true").status == 6
    assert scene.cli("run", "--license", "acme", "--", "false").status == 1
    assert scene.cli("run", "--license", "acme", "--", "/nowhere").status == 127
    assert scene.cli("run", "--license", "acme", "--", "/etc/passwd").status == 126


def test_usage_adds_up_by_license_process_and_unit(scene: Scene) -> None:
    def acme() -> dict[str, Any]:
        rows = scene.ask("usage")["rows"]
        return next((row for row in rows if row["license"] == "acme"), {"quantities": {}})

    def sent(row: dict[str, Any]) -> int:
        return int(row["quantities"].get("tx_wire_bytes", 0))

    before = sent(acme())
    with scene.program() as (program, _report):
        assert program.process.stdin is not None
        program.process.stdin.write(b"y" * 4999 + b"\n")
        program.process.stdin.flush()
        assert program.line() == {"outcome": "ok"}
        row = acme()
        assert row["sockets"] >= 1
        assert sent(row) - before >= 5000
        by_process = scene.ask("usage", "--by", "process")["rows"]
        assert program.pid in {row["pid"] for row in by_process}
        assert scene.ask("usage", "--by", "unit")["rows"]
    # What closed sockets used is not lost.
    after = eventually(lambda: None if (row := acme())["sockets"] else row)
    assert sent(after) - before >= 5000
    assert after["allowed"] >= 1


def test_doctor_and_settings(scene: Scene) -> None:
    found = scene.cli("doctor", "--json")
    assert found.status in {0, 150}  # a test machine's clock may not be synchronised
    checks = {row["name"]: row["ok"] for row in found.json["checks"]}
    assert checks["trust"]
    assert checks["policy"]
    assert {row["state"] for row in found.json["coverage"]} <= {"closed", "open", "partial"}
    live = scene.ask("config", "check", "--live")
    assert live["pending"] == []
    config = scene.agent.config / "agent.toml"
    good = config.read_text()
    config.write_text(good.replace('mode = "enforce"', 'mode = "observe"'))
    try:
        live = scene.ask("config", "check", "--live")
        assert live["pending"] == [{"key": "mode", "written": "observe", "running": "enforce"}]
        config.write_text(good + "\nmoode = 1\n")
        result = scene.cli("config", "check")
        assert result.status == 7
        assert "did you mean mode" in result.err
    finally:
        config.write_text(good)


def test_a_second_daemon_is_refused_and_detach_ends_the_first(scene: Scene) -> None:
    second = scene.cli("daemon")
    assert second.status == 8
    assert str(scene.agent.pid) in second.err
    assert scene.cli("detach").status == 2  # nobody to ask
    assert scene.cli("detach", "--yes").status == 0
    assert scene.agent.process is not None
    assert scene.agent.process.wait(30) == DETACHED
    assert scene.connect(STRANGER) == "ok"
    assert scene.cli("detach", "--yes").status == 0  # nothing was attached
    scene.agent.start()
    assert (scene.connect(HOLDER), scene.connect(STRANGER)) == ("ok", "ENOKEY")
