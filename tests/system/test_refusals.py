# SPDX-License-Identifier: Apache-2.0
"""Licenses that must not count, through the real daemon: as files and by `license add`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.system.harness.forger import ATTACKS, Forger
from tests.system.harness.scene import HOLDER, STRANGER, Scene, eventually

from licagent.kernel.bpffs import PinFolder
from lictoken.claims import LicenseScope


@pytest.fixture(scope="module")
def forger() -> Iterator[tuple[Scene, Forger]]:
    with Scene(AgentUnderTest()) as scene:
        forger = Forger(scene.agent)
        scene.agent.start()
        scene.ready()
        rows = scene.ask("license", "list")["licenses"]
        forger.number = rows[0]["number"]
        scene.agent.issue("renewed", ["db"])
        scene.agent.issue("renewed", ["db"])
        yield scene, forger


def untouched(scene: Scene) -> None:
    """Who is licensed still is, who is not still is not, and nothing new is known."""
    assert (scene.connect(HOLDER), scene.connect(STRANGER)) == ("ok", "ENOKEY")
    rows = scene.ask("license", "list")["licenses"]
    assert {row["id"] for row in rows} == {"acme", "renewed"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_added_by_hand(forger: tuple[Scene, Forger], attack: str) -> None:
    scene, made = forger
    refusal, make = ATTACKS[attack]
    path = scene.file("attack.lic", make(made))
    folder = sorted((scene.agent.config / "licenses").iterdir())
    result = scene.cli("license", "add", path)
    assert result.status == 7, result
    assert f"[{refusal}]" in result.err
    assert result.out == ""
    result = scene.cli("license", "add", path, "--json")
    assert result.json["error"]["details"]["refusal"] == refusal
    assert sorted((scene.agent.config / "licenses").iterdir()) == folder


def test_dropped_into_the_folder(forger: tuple[Scene, Forger]) -> None:
    scene, made = forger
    folder = scene.agent.config / "licenses"
    files = {}
    for number, (attack, (refusal, make)) in enumerate(ATTACKS.items()):
        # Names before and after the good one: the order of reading must not matter.
        path = folder / f"{'a' if number % 2 else 'z'}{number}.lic"
        path.write_bytes(make(made))
        files[path.name] = (attack, refusal)
    with (folder / "giant.lic").open("wb") as giant:
        giant.truncate(1 << 30)
    os.mkfifo(folder / "fifo.lic")
    (folder / "device.lic").symlink_to("/dev/zero")
    (folder / "folder.lic").mkdir()
    files["giant.lic"] = ("1 GiB", "too-large")
    for name in ("fifo.lic", "device.lic", "folder.lic"):
        files[name] = (name, "unreadable")
    try:
        scene.reload()
        status = scene.cli("status", "--json")
        assert status.status == 150
        rows = {row["file"]: row for row in status.json["refused_files"]}
        found = {files[name][0]: row["reason"] for name, row in rows.items()}
        assert found == dict(files.values())
        assert all(row["hint"] or row["reason"] in NEXT_IN_DETAIL for row in rows.values())
        reasons = [row for row in status.json["reasons"] if row["code"] == "license-refused"]
        assert len(reasons) == len(files)
        untouched(scene)
    finally:
        for name in files:
            path = folder / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        assert scene.cli("policy", "apply").status == 0
    assert scene.cli("status").status == 0


NEXT_IN_DETAIL = {"id-taken", "number-taken", "replayed"}


def test_a_gibibyte_is_not_read_by_the_command_either(forger: tuple[Scene, Forger]) -> None:
    scene, _made = forger
    path = scene.file("giant.lic", "")
    os.truncate(path, 1 << 30)
    result = scene.cli("license", "add", path)
    assert result.status == 7
    assert "[too-large]" in result.err


@pytest.mark.parametrize(
    ("jti", "fields", "state", "errno"),
    [
        ("late", {"expires_in_s": -10, "starts_in_s": -60}, "expired", "EKEYEXPIRED"),
        ("early", {"starts_in_s": 3000}, "not_yet_valid", "EKEYEXPIRED"),
        ("elsewhere", {"hosts": ("db-7.invalid",)}, "condition", "EKEYREJECTED"),
        (
            "abroad",
            {"scope": LicenseScope(org="tests", regions=("mars-1",))},
            "condition",
            "EKEYREJECTED",
        ),
    ],
)
def test_good_licenses_that_grant_nothing_here_and_now(
    forger: tuple[Scene, Forger],
    jti: str,
    fields: dict[str, object],
    state: str,
    errno: str,
) -> None:
    scene, _made = forger
    path = scene.file(f"{jti}.lic", scene.agent.token(jti, ["db"], **fields))
    try:
        result = scene.cli("license", "add", path)
        assert result.status == 0
        assert f"[{state}]" in result.err
        assert f"license {jti}" in result.err
        assert scene.state_of(jti) == state
        row = next(row for row in scene.ask("status")["licenses"] if row["id"] == jti)
        assert row["state"] == state
        assert jti in row["reason"]
        assert row["remaining_s"] == 0
        scene.agent.policy(scene.policy_text(jti))
        assert scene.connect(HOLDER) == errno
    finally:
        scene.agent.policy(scene.policy_text("acme"))
        assert scene.cli("license", "remove", jti).status == 0
    untouched(scene)


def test_a_key_that_is_retired_ends_its_licenses(forger: tuple[Scene, Forger]) -> None:
    scene, _made = forger
    trust = scene.agent.config / "trust.jwks"
    good = trust.read_bytes()
    kid = scene.agent.key.kid
    before, marker, after = good.partition(f'"kid": "{kid}"'.encode())
    assert marker
    trust.write_bytes(before + marker + after.replace(b'"active"', b'"retired"', 1))
    try:
        scene.reload()
        assert scene.connect(HOLDER) == "ENOKEY"
        assert {row["reason"] for row in scene.refused().values()} == {"retired-key"}
    finally:
        trust.write_bytes(good)
        scene.reload()
    untouched(scene)


@pytest.mark.parametrize("text", [None, b"", b"{", b'{"keys": []}'])
def test_without_trust_nobody_is_let_in(forger: tuple[Scene, Forger], text: bytes | None) -> None:
    scene, _made = forger
    trust = scene.agent.config / "trust.jwks"
    good = trust.read_bytes()
    if text is None:
        trust.unlink()
    else:
        trust.write_bytes(text)
    try:
        with scene.program(HOLDER) as (program, report):
            assert report["outcome"] == "ok"
            scene.reload()
            assert program.process.stdin is not None
            program.process.stdin.write(b"x\n")
            program.process.stdin.flush()
            assert program.line() != {"outcome": "ok"}
        assert (scene.connect(HOLDER), scene.connect(STRANGER)) == ("ENOKEY", "ENOKEY")
        status = scene.cli("status", "--json")
        assert status.status == 150
        codes = {row["code"] for row in status.json["reasons"]}
        assert codes & {"trust-missing", "license-refused"}
        assert scene.cli("license", "add", scene.file("n.lic", "x")).status == 7
        # The same after a reboot: the last good policy holds, and no license does.
        scene.agent.kill()
        PinFolder(scene.agent.bpffs).remove()
        scene.agent.start()
        assert scene.connect(HOLDER) != "ok"
        assert scene.connect(STRANGER) == "ENOKEY"
    finally:
        trust.write_bytes(good)
        scene.reload()
    eventually(lambda: scene.cli("status").status == 0)
    untouched(scene)
