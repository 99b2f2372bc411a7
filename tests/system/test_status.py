# SPDX-License-Identifier: Apache-2.0
"""`licagent status` on a real daemon: what it says and how it ends."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Callable

from tests.system.harness.scene import HOLDER, STRANGER, Scene, eventually


def test_an_enforcing_host_is_well(scene: Scene) -> None:
    assert (scene.connect(HOLDER), scene.connect(STRANGER)) == ("ok", "ENOKEY")
    found = scene.ask("status")
    assert found["state"] == "enforcing"
    assert found["reasons"] == []
    assert found["pid"] == scene.agent.pid
    assert found["policy"] == {
        "generation": found["policy"]["generation"],
        "loaded_at": found["policy"]["loaded_at"],
        "files": ["test.toml"],
        "resources": 1,
        "bindings": 1,
        "rules": 1,
    }
    [license_] = found["licenses"]
    assert (license_["id"], license_["state"]) == ("acme", "valid")
    assert license_["allowed"] >= 1
    assert 3500 < license_["remaining_s"] <= 3600
    assert all(row["attached"] for row in found["kernel"]["programs"])
    counted = {(row["verdict"], row["reason"]): row for row in found["counters"]}
    assert counted["allow", "licensed"]["license"] == "acme"
    assert counted["allow", "licensed"]["resource"] == "db"
    assert counted["deny", "no_binding"]["count"] >= 1
    assert counted["deny", "no_binding"]["license"] is None


def test_live_sockets_are_holders_of_the_license(scene: Scene) -> None:
    eventually(lambda: scene.ask("status")["licenses"][0]["holders"] == 0)  # of tests before
    with scene.program(), scene.program():
        assert scene.ask("status")["licenses"][0]["holders"] == 2
    eventually(lambda: scene.ask("status")["licenses"][0]["holders"] == 0)


def test_the_text_says_the_same(scene: Scene) -> None:
    result = scene.cli("status", "--verbose")
    assert result.status == 0
    assert "licagent 0.1.0: enforcing" in result.out
    assert "acme" in result.out
    assert "cgroup_connect4" in result.out
    assert result.err == ""


def test_a_daemon_that_does_not_answer_is_unknown(scene: Scene) -> None:
    os.kill(scene.agent.pid, signal.SIGSTOP)
    try:
        result = scene.cli("status", "--timeout", "0.5")
        assert result.status == 4
        assert "did not answer" in result.err
        # The kernel decides without it.
        assert (scene.connect(HOLDER), scene.connect(STRANGER)) == ("ok", "ENOKEY")
    finally:
        os.kill(scene.agent.pid, signal.SIGCONT)
    assert eventually(lambda: scene.cli("status").status == 0)


def test_a_refused_license_is_a_degraded_host(scene: Scene) -> None:
    bad = scene.agent.config / "licenses" / "bad.lic"
    bad.write_text("-----BEGIN LICAGENT LICENSE-----\nabc\n")
    try:
        scene.reload()
        result = scene.cli("status")
        assert result.status == 150
        assert "license-refused: bad.lic" in result.out
        assert scene.cli("status", "--json").json["state"] == "degraded"
    finally:
        bad.unlink()
    assert scene.cli("policy", "apply").status == 0  # it reads the licenses again
    assert scene.cli("status").status == 0


def test_break_glass_is_a_state_of_its_own(scene: Scene) -> None:
    opened = scene.ask("break-glass", "--for", "10m", "--reason", "ticket 7")
    assert opened["break_glass"]["reason"] == "ticket 7"
    assert opened["break_glass"]["by"] == "uid 0"
    try:
        result = scene.cli("status", "--json")
        assert result.status == 151
        assert result.json["state"] == "break-glass"
        assert result.json["break_glass"]["until"] == opened["break_glass"]["until"]
        assert scene.connect(STRANGER) == "ok"
    finally:
        closed = scene.cli("break-glass", "--end", "--json")
    assert closed.json["changed"] is True
    assert scene.connect(STRANGER) == "ENOKEY"
    assert scene.cli("break-glass", "--end").status == 0  # it was not open: nothing changes
    assert scene.cli("status").status == 0
    messages = [
        event["message"] for event in scene.agent.events() if event["kind"] == "break-glass"
    ]
    assert "by uid 0: ticket 7" in messages[-2]
    assert "closed again" in messages[-1]


def test_break_glass_ends_by_itself(scene: Scene) -> None:
    scene.ask("break-glass", "--for", "1s", "--reason", "ticket 8")
    eventually(lambda: scene.cli("status").status == 0, "break-glass ended")
    assert scene.connect(STRANGER) == "ENOKEY"


def test_a_host_that_observes_says_so_and_lists_shadow_usage(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(mode="observe")
    assert scene.cli("status").status == 3  # not started yet
    scene.agent.start()
    scene.ready()
    for _time in range(3):
        assert scene.connect(STRANGER) == "ok"
    found = eventually(
        lambda: [row for row in scene.ask("status")["shadow"] if row["count"] >= 3],
        "three uses are shadow usage",
    )
    assert found[0]["resource"] == "db"
    assert found[0]["user"] == str(STRANGER)
    (proposed,) = tomllib.loads(found[0]["suggestion"])["binding"]
    assert proposed["license"] == "<a license for db>"
    assert f"unix:uid:{STRANGER}" in proposed["selectors"]
    assert scene.ask("status")["state"] == "observing"
    scene.agent.stop()
    result = scene.cli("status")
    assert result.status == 3
    assert "no daemon answers" in result.err
