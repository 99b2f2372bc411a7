# SPDX-License-Identifier: Apache-2.0
"""`licagent explain`: which license, which binding, since when, or what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest
from tests.system.harness.scene import HOLDER, STRANGER, Scene, eventually


def sockets(scene: Scene, target: str) -> list[dict[str, Any]]:
    return list(scene.ask("explain", target)["sockets"])


def resource(scene: Scene, pid: int, name: str = "db") -> dict[str, Any]:
    rows = {row["resource"]: row for row in scene.ask("explain", str(pid))["resources"]}
    return dict(rows[name])


def test_an_allowed_process_and_its_socket(scene: Scene) -> None:
    with scene.program() as (program, report):
        found = scene.ask("explain", str(program.pid))
        assert found["process"]["pid"] == program.pid
        assert found["process"]["uid"] == HOLDER
        assert found["process"]["in_scope"] is True
        assert found["process"]["executable"].startswith("/")
        [row] = found["resources"]
        assert (row["resource"], row["verdict"], row["reason"]) == ("db", "allow", "licensed")
        assert (row["license"], row["binding"]) == ("acme", "acme/1")
        assert row["selectors"] == [f"unix:uid:{HOLDER}"]
        assert row["missing"] == []
        [sock] = found["sockets"]
        assert (sock["verdict"], sock["license"], sock["binding"]) == ("allow", "acme", "acme/1")
        assert sock["resource"] == "db"
        assert sock["cookie"] == report["cookie"]
        assert (sock["local"], sock["remote"]) == (report["local"], report["remote"])
        assert sock["since"].endswith("Z")
        before = sock["tx_bytes"]
        assert program.process.stdin is not None
        program.process.stdin.write(b"x" * 999 + b"\n")
        program.process.stdin.flush()
        assert program.line() == {"outcome": "ok"}
        [sock] = sockets(scene, f"cookie:{report['cookie']}")
        assert sock["tx_bytes"] >= before + 1000
        assert sockets(scene, f"{report['local']}->{report['remote']}") == [sock]


def test_a_denied_process_is_told_what_is_missing_and_how_to_get_it(scene: Scene) -> None:
    with scene.program(STRANGER) as (program, report):
        assert report["outcome"] == "ENOKEY"
        row = resource(scene, program.pid)
        assert (row["verdict"], row["reason"], row["errno"]) == ("deny", "no_binding", "ENOKEY")
        assert (row["license"], row["binding"], row["rule"]) == (None, None, None)
        assert row["missing"] == [f"binding acme/1 asks for unix:uid:{HOLDER}"]
        assert f'selectors = ["unix:uid:{STRANGER}"]' in row["how"][0]
        assert "licagent run --license" in row["how"][1]
        text = scene.cli("explain", str(program.pid)).out
        assert "no binding gives it a license (ENOKEY)" in text
        assert "missing: binding acme/1" in text


@pytest.mark.parametrize(
    ("end", "reason", "errno"),
    [("expire", "expired", "EKEYEXPIRED"), ("revoke", "revoked", "EKEYREVOKED")],
)
def test_an_ended_license_is_named_and_its_socket_is_gone(
    scene: Scene, end: str, reason: str, errno: str
) -> None:
    jti = f"ends-{end}"
    scene.ready(jti, expires_in_s=600)
    try:
        with scene.program() as (program, report):
            assert report["outcome"] == "ok"
            if end == "expire":
                scene.agent.issue(jti, ["db"], expires_in_s=3)  # in place of the one in use
            else:
                found = scene.ask("license", "revoke", jti, "--reason", "test")
                assert found["sockets_cut"] == 1
            eventually(lambda: resource(scene, program.pid)["reason"] == reason)
            row = resource(scene, program.pid)
            assert (row["verdict"], row["errno"], row["license"]) == ("deny", errno, jti)
            assert jti in row["missing"][0]
            assert row["how"] != [""]
            assert program.process.stdin is not None
            program.process.stdin.write(b"still there?\n")
            program.process.stdin.flush()
            assert program.line() != {"outcome": "ok"}
            # What is still open of it says why it is dead; no socket is called licensed.
            for sock in sockets(scene, str(program.pid)):
                assert sock["verdict"] != "allow"
        assert scene.connect() == errno
    finally:
        scene.agent.policy(scene.policy_text("acme"))


def test_what_is_not_there_is_not_found(scene: Scene) -> None:
    gone = subprocess.Popen(["sleep", "0"])
    gone.wait()
    result = scene.cli("explain", str(gone.pid))
    assert result.status == 6
    assert "licagent events --pid" in result.err
    for target in ("cookie:18446744073709551615", "127.0.0.1:1->127.0.0.1:2"):
        result = scene.cli("explain", target, "--json")
        assert result.status == 6
        assert result.json["error"]["code"] == "NOT_FOUND"
    assert scene.cli("explain", "curl").status == 2


def test_processes_outside_the_enforced_tree_are_said_to_be(scene: Scene) -> None:
    found = scene.ask("explain", str(os.getpid()))
    assert found["process"]["in_scope"] is False


def test_nothing_is_explained_by_a_stopped_daemon(scene: Scene) -> None:
    os.kill(scene.agent.pid, signal.SIGSTOP)
    try:
        assert scene.cli("explain", "1", "--timeout", "0.3").status == 4
    finally:
        os.kill(scene.agent.pid, signal.SIGCONT)
