# SPDX-License-Identifier: Apache-2.0
"""Hosts leave: their last usage is settled first, then their certificates end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.system.harness.controlplane import ControlPlane, Host
from tests.system.harness.looking import seen
from tests.system.harness.scene import HOLDER, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SELDOM = "metering_interval_s = 3600\n"
"""Usage is committed by nothing but what leaving does."""


def billed(plane: ControlPlane, name: str) -> dict[str, int]:
    """What the control plane holds of the host's network use under the license."""
    with plane.rows() as rows:
        found = rows.execute(
            "SELECT coalesce(sum(tx_payload_bytes), 0), count(*) FROM usage_records"
            " WHERE host_id = ? AND license = 'acme-db' AND kind = 2",
            (name,),
        ).fetchone()
    return {"sent": int(found[0]), "rows": int(found[1])}


def left(plane: ControlPlane, name: str) -> list[dict[str, Any]]:
    """The audit log's entries of hosts that left settled."""
    return [
        one
        for one in plane.ask("audit", "list")["entries"]
        if one["action"] == "host.leave" and one["target"] == name
    ]


@pytest.fixture
def worker(make_host: Callable[..., Host]) -> Host:
    """A host with a license, of which some use was made."""
    host = make_host(settings=SELDOM)
    host.enroll()
    host.licensed()
    with host.program() as (program, report):
        assert report["outcome"] == "ok"
        assert program.process.stdin is not None
        for _ in range(3):
            program.process.stdin.write(b"x" * 999 + b"\n")
            program.process.stdin.flush()
            assert program.line() is not None
    return host


def test_decommissioned_by_the_control_plane(plane: ControlPlane, worker: Host) -> None:
    name = worker.id
    assert billed(plane, name)["rows"] == 0
    with worker.program() as (program, report):
        assert report["outcome"] == "ok"
        found = plane.ask("host", "decommission", name, "--reason", "rack 7 goes")
        assert found["settled"] is True
        assert program.process.poll() is None
    assert billed(plane, name)["sent"] >= 3000
    assert plane.host(name)["status"] == "evicted"
    [entry] = left(plane, name)
    with plane.rows() as rows:
        stored = dict(rows.execute("SELECT epoch, acked_sequence FROM usage_epochs").fetchall())
    assert {one["epoch"]: one["sequence"] for one in entry["detail"]["usage"]} == stored
    # The host is nobody's now: no license, no policy, no identity of before.
    eventually(lambda: worker.control["state"] == "unenrolled", worker.state())
    assert worker.ask("license", "list")["licenses"] == []
    assert plane.cli("host", "decommission", name).status == 7
    assert plane.ask("audit", "verify")["intact"] is True
    # It may come back as a new host.
    found = worker.enroll()
    assert found["host_id"] != name
    worker.until("ok")


def test_the_host_leaves_by_itself(plane: ControlPlane, worker: Host) -> None:
    name = worker.id
    result = worker.ask("leave")
    assert (result["left"], result["settled"], result["host_id"]) == (True, True, name)
    assert billed(plane, name)["sent"] >= 3000
    assert len(left(plane, name)) == 1
    assert worker.control["state"] == "unenrolled"
    assert worker.cli("leave").status == 6
    # A restart finds nothing of it either.
    worker.agent.kill()
    worker.agent.start()
    assert worker.control["state"] == "unenrolled"


def test_leaving_waits_for_the_last_usage(plane: ControlPlane, worker: Host) -> None:
    """Told while it was away, the host settles when it is back; licenses end at once then."""
    name = worker.id
    worker.agent.kill()
    found = plane.cli("host", "decommission", name, "--wait", "1s")
    assert found.status == 8
    assert "host evict" in found.err
    assert plane.host(name)["status"] == "leaving"
    assert "last usage" in str(plane.host(name)["drift"])
    worker.agent.start()
    eventually(lambda: seen(plane, name).status.word == "evicted", worker.state())
    assert billed(plane, name)["sent"] >= 3000
    assert len(left(plane, name)) == 1


def test_a_control_plane_that_is_lost_is_forgotten(plane: ControlPlane, worker: Host) -> None:
    plane.kill()
    refused = worker.cli("leave", "--wait", "1")
    assert refused.status == 7
    assert "--forget" in refused.err
    assert worker.connect(HOLDER) == "ok"
    result = worker.ask("leave", "--forget")
    assert (result["left"], result["settled"]) == (True, False)
    assert worker.control["state"] == "unenrolled"
    assert worker.ask("license", "list")["licenses"] == []
