# SPDX-License-Identifier: Apache-2.0
"""The daemon that may open no connection: all that needs a network goes by its way out."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from tests.system.harness.confined import ConfinedAgent
from tests.system.harness.controlplane import ControlPlane, Host
from tests.system.harness.scene import eventually

from licagent.host import posture
from licagent.uplink.client import Uplink, UplinkError


@pytest.fixture
def agent() -> ConfinedAgent:
    """An agent that has a way out and no network."""
    return ConfinedAgent(settings="report_interval_s = 1")


@pytest.fixture
def confined(make_plane: Callable[..., ControlPlane], agent: ConfinedAgent) -> Iterator[Host]:
    """It runs, beside a control plane that it has not joined."""
    with Host(make_plane(), agent) as host:
        agent.start_uplink()
        agent.start()
        yield host


def test_a_host_without_a_network_of_its_own_is_licensed(
    confined: Host, agent: ConfinedAgent
) -> None:
    """Joining, sync, leases and a push all pass; a way out that ended and is back is found."""
    confined.enroll()
    confined.licensed()
    eventually(lambda: confined.control["state"] == "connected", "connected")
    assert confined.control["server"] == confined.plane.control

    # It may not read the clock's state: what it knows is what this machine's kernel says.
    found = posture.clock_sync()
    assert found is not None
    said = "true" if found.synchronised else "false"
    eventually(lambda: _facts(confined).get("clock_in_sync") == said, "the clock's state is known")

    agent.stop_uplink()
    eventually(lambda: confined.control["state"] != "connected", "cut off")
    confined.until("ok")  # enforcement and leases do not hang on it
    agent.start_uplink()
    confined.ask("enroll", confined.plane.join())  # changes nothing, and tries again at once
    eventually(lambda: confined.control["state"] == "connected", "connected again")

    # A server that is away: the daemon says so, not that a local socket was closed.
    confined.plane.stop()
    eventually(lambda: "refused" in confined.control["last_error"].lower(), "the reason is told")
    assert confined.plane.control in confined.control["last_error"]


def _facts(host: Host) -> dict[str, str]:
    return dict(host.cli("status", "--json").json["host"]["facts"])


def test_names_sockets_and_errors_come_over(agent: ConfinedAgent) -> None:
    """It looks names up, and hands over sockets that listen; what it cannot do it says."""
    try:
        agent.start_uplink()
        assert agent.uplink_path.stat().st_mode & 0o777 == 0o600
        way_out = Uplink(agent.uplink_path, agent.folder)
        with way_out.listen("127.0.0.1", 0) as listener:
            place = listener.getsockname()
            with socket.create_connection(place[:2], timeout=10) as client:
                accepted, _ = listener.accept()
                with accepted:
                    client.sendall(b"through")
                    assert accepted.recv(16) == b"through"
            with pytest.raises(UplinkError, match="in use"):
                way_out.listen("127.0.0.1", place[1])
        assert ("127.0.0.1", 8443) in way_out.resolve("localhost:8443")
        assert way_out.resolve("no-such-name.invalid:8443") == ()
        agent.stop_uplink()
        with pytest.raises(UplinkError, match="no way out"):
            way_out.resolve("localhost:8443")
    finally:
        agent.close()
