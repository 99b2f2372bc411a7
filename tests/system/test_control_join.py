# SPDX-License-Identifier: Apache-2.0
"""A host joins a control plane: tokens, labels, repetition, and machines that may not come back."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable

from tests.system.harness.controlplane import ControlPlane, Host, takes_connections
from tests.system.harness.scene import STRANGER, eventually

MakeHost = Callable[..., Host]


def test_joining_twice_changes_nothing(plane: ControlPlane, make_host: MakeHost) -> None:
    host = make_host()
    join = plane.join(region="eu-1")
    first = host.enroll(join)
    assert first["changed"] is True
    again = host.enroll(join)  # its only use is spent: by this very host
    assert again["changed"] is False
    assert again["host_id"] == first["host_id"]
    assert list(plane.hosts()) == [first["host_id"]]
    found = plane.host(first["host_id"])
    assert found["status"] == "active"
    assert found["labels"] == {"org": "acme", "region": "eu-1"}
    [token] = plane.ask("token", "list")["tokens"]
    assert token["uses"] == 1


def test_the_host_is_known_again_after_a_restart(plane: ControlPlane, make_host: MakeHost) -> None:
    host = make_host()
    name = host.enroll()["host_id"]
    eventually(lambda: plane.host(name)["connected"], "connected")
    host.agent.stop()
    eventually(lambda: not plane.host(name)["connected"], "gone")
    host.agent.start()
    eventually(lambda: plane.host(name)["connected"], "connected again")
    assert list(plane.hosts()) == [name]


def test_a_token_for_two_takes_two(plane: ControlPlane, make_host: MakeHost) -> None:
    join = plane.join(uses=2)
    hosts = [make_host() for _ in range(3)]
    assert hosts[0].enroll(join)["changed"]
    assert hosts[1].enroll(join)["changed"]
    refused = hosts[2].cli("enroll", join)
    assert refused.status != 0
    assert "token" in refused.err
    assert len(plane.hosts()) == 2
    # The first may still repeat its own enrolment.
    assert hosts[0].enroll(join)["changed"] is False


def test_an_expired_and_a_deleted_token_admit_nobody(
    plane: ControlPlane, make_host: MakeHost
) -> None:
    host = make_host()
    brief = plane.join(ttl="1s")
    deleted = plane.join()
    [row, _] = sorted(plane.ask("token", "list")["tokens"], key=lambda t: t["expires_at"])[::-1]
    plane.do("token", "delete", row["id"])

    time.sleep(1.5)
    for join in (brief, deleted):
        refused = host.cli("enroll", join)
        assert refused.status != 0
        assert "token" in refused.err
    assert plane.hosts() == {}


def test_a_token_is_not_in_the_database(plane: ControlPlane) -> None:
    join = plane.join()
    body = join.removeprefix("licjoin1.")
    secret = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["secret"]
    raw = base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4))
    plane.stop()
    kept = b"".join(p.read_bytes() for p in plane.state.rglob("*") if p.is_file())
    for form in (secret.encode(), raw, raw.hex().encode()):
        assert form not in kept


def test_a_changed_token_is_refused_by_whoever_sees_it_first(
    plane: ControlPlane, make_plane: Callable[..., ControlPlane], make_host: MakeHost
) -> None:
    other = make_plane()
    host = make_host()

    def fields(join: str) -> dict[str, str]:
        body = join.removeprefix("licjoin1.")
        found: dict[str, str] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return found

    def text(found: dict[str, str]) -> str:
        return "licjoin1." + base64.urlsafe_b64encode(json.dumps(found).encode()).decode().rstrip(
            "="
        )

    good = fields(plane.join())
    changed = {
        "another server's root": {**good, "ca": fields(other.join())["ca"]},
        "another server": {**good, "public": other.public},
        "another secret": {**good, "secret": good["secret"][::-1]},
        "no such token": {**good, "id": "../../etc/passwd' OR 1=1 --"},
    }
    for what, found in changed.items():
        assert host.cli("enroll", text(found)).status != 0, what
    for junk in ("licjoin1.", "licjoin1.!!!!", "licjoin2.e30", "hello", "licjoin1.e30"):
        assert host.cli("enroll", junk).status != 0, junk
    assert plane.hosts() == {}
    assert other.hosts() == {}
    assert takes_connections(plane.public)
    assert host.enroll(text(good))["changed"] is True


def test_only_root_may_join(plane: ControlPlane, make_host: MakeHost) -> None:
    host = make_host()
    refused = host.cli_as(STRANGER, "enroll", plane.join())
    assert refused.status != 0
    assert plane.hosts() == {}


def test_an_evicted_host_stops_and_comes_back_with_a_new_token(host: Host) -> None:
    plane, name = host.plane, host.id
    used = plane.join()
    with host.program() as (program, report):
        assert report["outcome"] == "ok"
        plane.do("host", "evict", name, "--reason", "sold")
        eventually(lambda: host.told("evicted"), "told")
        eventually(lambda: not plane.host(name)["connected"], "gone")
        # What is leased goes on until the lease ends (test_control_link), but nothing new comes.
        assert program.process.poll() is None
    revision = plane.host(name)["acked_revision"]
    plane.apply(host.resource("more", destinations=[{"cidr": "192.0.2.1/32"}]))
    assert plane.host(name)["acked_revision"] == revision
    assert host.enroll(used)["host_id"]
    eventually(lambda: host.control["state"] == "connected", "connected again")
    host.until("ok")


def test_a_banned_machine_stays_out(host: Host) -> None:
    plane, name = host.plane, host.id
    plane.do("host", "ban", name)
    eventually(lambda: host.told("banned"), "told")
    refused = host.cli("enroll", "--new", plane.join())
    assert refused.status != 0
    assert "ban" in refused.err
    assert list(plane.hosts()) == [name]
    eventually(lambda: not plane.host(name)["connected"], "gone")
