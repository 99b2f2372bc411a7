# SPDX-License-Identifier: Apache-2.0
"""Torn and damaged state: the daemon starts, says so, and lets in nobody who was revoked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.harness.scene import HOLDER, STRANGER, Scene

from licagent.kernel.bpffs import PinFolder

Damage = Callable[[Path], None]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def huge(path: Path) -> None:
    os.truncate(path, 1 << 30)


DAMAGES = (empty, torn, zeros, flipped, huge)


@pytest.fixture
def stopped(make_scene: Callable[..., Scene]) -> Scene:
    """A scene in which "bad" was revoked and "acme" is good, its daemon killed."""
    scene = make_scene()
    scene.agent.start()
    scene.agent.issue("bad", ["db"])
    scene.agent.issue("acme", ["db"])
    scene.agent.policy(
        scene.policy_text("acme") + '[[binding]]\nlicense = "bad"\n'
        f'selectors = ["unix:uid:{STRANGER}"]\n'
    )
    assert (scene.connect(HOLDER), scene.connect(STRANGER)) == ("ok", "ok")
    scene.agent.revoke("bad")
    assert scene.connect(STRANGER) == "EKEYREVOKED"
    scene.agent.kill()
    return scene


def state(scene: Scene, name: str) -> Path:
    return scene.agent.folder / "state" / name


def start(scene: Scene, *, reboot: bool = True) -> set[str]:
    """Start the daemon, after a reboot if wished; the codes of what it says is wrong."""
    if reboot:
        PinFolder(scene.agent.bpffs).remove()
    scene.agent.start()
    result = scene.cli("status", "--json", "--timeout", "20")
    assert result.status in {0, 150}
    return {row["code"] for row in result.json["reasons"]}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("licenses.json", damage) for damage in DAMAGES),
        ("licenses-spare.json", zeros),
        ("numbers.json", torn),
        ("numbers-floor.json", flipped),
        ("clock.json", empty),
    ],
)
def test_one_damaged_document(stopped: Scene, name: str, damage: Damage) -> None:
    damage(state(stopped, name))
    assert "state-damaged" in start(stopped)
    assert (stopped.connect(HOLDER), stopped.connect(STRANGER)) == ("ok", "EKEYREVOKED")
    kept = list(state(stopped, "").glob("*.damaged-*"))
    assert [path.name.split(".")[0] for path in kept] == [name.removesuffix(".json")]
    assert stopped.cli("status").status == 150
    for path in kept:
        path.unlink()
    assert stopped.cli("status").status == 0
    # Whole again: nothing is found at the next start.
    stopped.agent.kill()
    assert start(stopped) == set()
    assert (stopped.connect(HOLDER), stopped.connect(STRANGER)) == ("ok", "EKEYREVOKED")


@pytest.mark.parametrize("reboot", [False, True])
def test_with_all_records_of_licenses_gone_nobody_is_let_in(stopped: Scene, reboot: bool) -> None:
    for name in ("licenses.json", "licenses-spare.json"):
        torn(state(stopped, name))
    for _start in range(2):  # the second one finds no damage, and remembers it
        codes = start(stopped, reboot=reboot)
        assert "license-refused" in codes
        assert {row["reason"] for row in stopped.refused().values()} == {"records-lost"}
        assert stopped.connect(HOLDER) != "ok"
        assert stopped.connect(STRANGER) != "ok"
        stopped.agent.kill()
    stopped.agent.start()
    # Root, who has asked the issuer, confirms the good one.
    path = stopped.agent.config / "licenses" / "acme.lic"
    assert stopped.cli("license", "add", path).status == 0
    assert stopped.connect(HOLDER) == "ok"
    assert stopped.connect(STRANGER) != "ok"


@pytest.mark.parametrize("damage", [torn, huge])
def test_everything_damaged_at_once(stopped: Scene, damage: Damage) -> None:
    for path in state(stopped, "").glob("*.json"):
        damage(path)
    for path in state(stopped, "events").iterdir():
        if damage is not huge:
            damage(path)
    codes = start(stopped)
    assert {"state-damaged", "license-refused"} <= codes
    assert stopped.connect(HOLDER) != "ok"
    assert stopped.connect(STRANGER) != "ok"


def test_the_last_good_policy_may_be_damaged_while_files_are_broken(stopped: Scene) -> None:
    # One of the two is read when it is needed, and only then.
    (stopped.agent.config / "policy.d" / "test.toml").write_text("[[")
    torn(state(stopped, "last-good-policy.json"))
    codes = start(stopped)
    assert {"state-damaged", "policy-refused"} <= codes
    assert (stopped.connect(HOLDER), stopped.connect(STRANGER)) == ("ok", "EKEYREVOKED")


def test_without_any_policy_left_that_is_said(stopped: Scene) -> None:
    (stopped.agent.config / "policy.d" / "test.toml").write_text("[[")
    for path in state(stopped, "").glob("last-good-policy*.json"):
        torn(path)
    codes = start(stopped)
    assert "no-policy" in codes
    text = stopped.cli("status").out
    assert "nothing is enforced" in text


def test_a_torn_end_of_the_events_is_cut_and_said(stopped: Scene) -> None:
    newest = max(state(stopped, "events").iterdir())
    whole = stopped.agent.folder.joinpath("state", "events", newest.name).read_bytes()
    newest.write_bytes(whole + b'{"seq": 99, "at": "20')
    start(stopped, reboot=False)
    rows = stopped.cli("events", "--json", "--limit", "10000").lines
    numbers = [row["seq"] for row in rows]
    assert numbers == list(range(1, len(numbers) + 1))
    assert any("cut off" in str(row.get("message")) for row in rows)


def test_a_lost_clock_does_not_bring_an_expired_license_back(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready(expires_in_s=1)
    time.sleep(2.5)
    assert scene.connect(HOLDER) == "EKEYEXPIRED"
    scene.agent.kill()
    for path in state(scene, "").glob("clock*.json"):
        torn(path)
    assert "state-damaged" in start(scene)
    assert scene.connect(HOLDER) == "EKEYEXPIRED"
