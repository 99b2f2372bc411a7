# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates change under a live fleet: no connection is cut, no host is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kernel.harness.programs import Program
from tests.system.harness.controlplane import ControlPlane, Host, binding, license
from tests.system.harness.looking import lag, roots, seen
from tests.system.harness.scene import HOLDER, STRANGER, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STALE_S = 7.0
"""So long after a new root even a process that reads late knows it."""


def talks(program: Program) -> bool:
    """Whether a byte still goes there and back."""
    assert program.process.stdin is not None
    program.process.stdin.write(b"x\n")
    program.process.stdin.flush()
    return program.line() == {"outcome": "ok"}


def not_ready(plane: ControlPlane, status: str) -> list[str]:
    """Who is not ready for what comes after."""
    return list(roots(plane)[status].missing)


def remote(plane: ControlPlane, file: Path) -> int:
    """The exit status of a command that asks the server with an administrator's file."""
    kept = {k: v for k, v in plane.environment.items() if not k.startswith("LICPLANE_")}

    class Elsewhere(ControlPlane):
        @property
        def environment(self) -> dict[str, str]:
            return kept

    with Elsewhere() as other:
        return other.cli("--server", plane.control, "--identity", file, "host", "list").status


def test_another_authority_takes_over(
    plane: ControlPlane, host: Host, make_host: Callable[..., Host]
) -> None:
    """Two roots are trusted for a while, every host renews, the old one is retired."""
    old_file = plane.folder / "old-admin.pem"
    plane.do("admin", "create", "ops", "--role", "admin", "--out", old_file)
    assert remote(plane, old_file) == 0
    first = roots(plane)["active"].fingerprint
    unused = plane.join()
    pid = host.agent.pid
    with host.program() as (program, report):
        assert report["outcome"] == "ok"

        plane.do("ca", "create", "--reason", "every few years")
        created_s = time.monotonic()
        assert plane.cli("ca", "create").status == 7  # one at a time
        # It is not taken into use while somebody would be shut out by it.
        early = plane.cli("ca", "promote")
        assert early.status == 7
        assert unused  # a join token that pins only the old root is named too
        assert "join token" in early.err
        assert "administrator ops" in early.err
        eventually(lambda: roots(plane)["coming"].hosts == 1, "the host trusts the next root")
        for token in plane.ask("token", "list")["tokens"]:
            if token["uses"] < token["uses_max"]:
                plane.do("token", "delete", token["id"])
        # What is made sooner may be of a process that did not know the next root yet, and counts
        # as naming the old one only.
        time.sleep(max(0.0, created_s + STALE_S - time.monotonic()))
        late = plane.join()  # pins both
        plane.do("admin", "delete", "ops")
        new_file = plane.folder / "new-admin.pem"
        plane.do("admin", "create", "ops2", "--role", "admin", "--out", new_file)
        assert not_ready(plane, "coming") == []

        plane.do("ca", "promote")
        eventually(lambda: remote(plane, new_file) == 0, "the server shows the new root")
        assert remote(plane, old_file) != 0
        eventually(
            lambda: not any("administrator" not in one for one in not_ready(plane, "active")),
            "the host has a certificate of the new root",
        )
        eventually(lambda: host.control["state"] == "connected", "connected again")
        assert plane.cli("ca", "retire", first[:12]).status == 7  # ops2's certificate is of the old
        plane.do("admin", "delete", "ops2")
        plane.do("ca", "retire", first[:12])
        eventually(
            lambda: (found := reported(plane, host)) and first not in found,
            "the host trusts only the new root",
        )
        plane.apply(binding(uid=STRANGER))
        host.until("ok", STRANGER)  # the link works, both ways
        assert talks(program)
    assert host.agent.pid == pid
    assert plane.host(host.id)["status"] == "active"
    # A token that was made in between lets a host in, although it began under the old root.
    newcomer = make_host()
    newcomer.enroll(late)
    eventually(lambda: newcomer.control["state"] == "connected", "the newcomer is connected")
    # A daemon that starts anew finds back with what is on its disk, and so does the server.
    plane.stop()
    plane.start()
    host.agent.kill()
    host.agent.start()
    eventually(lambda: host.control["state"] == "connected", "connected after both restarts")
    assert plane.ask("audit", "verify")["intact"] is True


def reported(plane: ControlPlane, host: Host) -> list[str]:
    """The roots that the host says it trusts."""
    report = json.loads(seen(plane, host.id).report_json or "{}")
    return list((report.get("state") or {}).get("authorities") or ())


def test_a_host_that_missed_the_change_comes_back_by_a_token(
    plane: ControlPlane, host: Host
) -> None:
    """It stays the same host: the issuer that it knows vouches for the root that it does not."""
    name, first = host.id, roots(plane)["active"].fingerprint
    host.agent.stop()
    plane.do("ca", "create")
    refused = plane.cli("ca", "promote")
    assert refused.status == 7
    plane.do("ca", "promote", "--anyway")
    plane.do("ca", "retire", first, "--anyway")
    eventually(
        lambda: "leaving" not in roots(plane) and roots(plane)["active"].fingerprint != first
    )
    plane.stop()
    plane.start()
    host.agent.start()
    eventually(lambda: host.control["last_error"], "it cannot verify the server")
    assert host.connect(HOLDER) == "ok"  # and goes on
    join = plane.join()
    assert host.cli("enroll", join).status == 7
    found = host.ask("enroll", "--again", join)
    assert found["host_id"] == name
    eventually(lambda: host.control["state"] == "connected", "connected")


def test_another_issuers_key_takes_over(plane: ControlPlane, host: Host) -> None:
    """The licenses are signed again, the old key is retired, and nothing that is open is cut."""
    name = host.id
    plane.apply(suspended := license("paused"), binding("paused", 62_001))
    plane.do("license", "suspend", suspended.name)
    host.until("EKEYREVOKED", 62_001)
    [first] = [one["kid"] for one in plane.ask("keys", "list")["keys"]]
    with host.program() as (program, report):
        assert report["outcome"] == "ok"
        plane.make_keys()
        second = next(
            one["kid"] for one in plane.ask("keys", "list")["keys"] if one["kid"] != first
        )
        # Hosts learn of it from the catalog, on the word of the key that they know.
        plane.apply(binding(uid=STRANGER))
        host.until("ok", STRANGER)
        assert host.control["last_refusal"] is None
        eventually(lambda: lag(plane, name) == 0, "the host has the new key")
        found = plane.ask("keys", "retire", first, "--resign")
        assert (found["changed"], found["signed_again"]) == (True, 2)
        eventually(lambda: lag(plane, name) == 0, "taken")
        row = host.ask("license", "show", "acme-db")["license"]
        assert row["kid"] == second
        assert talks(program)
        # What the new key says is believed, leases too.
        plane.do("binding", "delete", f"acme-db-{STRANGER}")
        host.until("ENOKEY", STRANGER)
        assert talks(program)
    assert host.connect(62_001) == "EKEYREVOKED"
    plane.do("license", "reinstate", suspended.name)
    host.until("ok", 62_001)
    host.agent.kill()
    host.agent.start()
    eventually(lambda: host.control["state"] == "connected", "connected")
    assert (host.connect(HOLDER), host.connect(62_001)) == ("ok", "ok")
    assert plane.ask("audit", "verify")["intact"] is True


def test_a_key_is_not_retired_under_hosts_that_know_no_other(
    plane: ControlPlane, host: Host
) -> None:
    name = host.id
    [first] = [one["kid"] for one in plane.ask("keys", "list")["keys"]]
    host.agent.stop()
    plane.make_keys()
    refused = plane.cli("keys", "retire", first, "--resign")
    assert refused.status == 7
    assert "do not hold revision" in refused.err
    assert {one["status"] for one in plane.ask("keys", "list")["keys"]} == {"active"}
    host.agent.start()
    eventually(lambda: lag(plane, name) == 0, "the host has the new key")
    plane.do("keys", "retire", first, "--resign")
    host.until("ok")
