# SPDX-License-Identifier: Apache-2.0
"""Bytes are the license's under which they went: once each, and whatever becomes of the socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import binding
from tests.kernel.harness.probes import eventually
from tests.kernel.harness.recorder import Recorder, free_port
from tests.kernel.harness.sides import service
from tests.kernel.harness.subjects import new_jti
from tests.kernel.test_hostile_sockets import Puppet, place, puppet

pytest_plugins = ["tests.kernel.harness.fixtures"]

CONNECTIONS: Final = 100
PACKET_BYTES_MAX: Final = 1000
"""More than the packets of a connection of one byte carry together; a copied total is far more."""


class Used:
    """A licensed process, and what its license has been charged."""

    def __init__(self, agent: AgentUnderTest, puppet: Puppet, selector: str) -> None:
        self.agent = agent
        self.puppet = puppet
        self.selector = selector
        self.jti = new_jti()
        agent.issue(self.jti, ["r"])

    def enforce(self, resource: str) -> None:
        self.agent.policy(resource + binding(self.jti, self.selector))

    def bytes(self, which: str) -> int:
        """tx_wire_bytes or rx_wire_bytes of the license, open and closed sockets."""
        rows = self.agent.call("usage", by="license")["rows"]
        mine = [row["quantities"] for row in rows if row["license"] == self.jti]
        return sum(int(quantities.get(which, 0)) for quantities in mine)


@pytest.fixture
def used(agent: AgentUnderTest) -> Iterator[Used]:
    with CgroupTree(agent.cgroup) as tree, puppet(tree.root) as licensed:
        yield Used(agent, licensed, f"cgroup:path:/{tree.root.name}")


def test_accepted_connections_do_not_count_their_listeners_bytes(used: Used) -> None:
    port = free_port()
    used.enforce(service(f'"{port}"', "tcp"))
    assert used.puppet(f'l = socket.create_server(("127.0.0.1", {port})); l.settimeout(30)') is None
    for _ in range(CONNECTIONS):
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as client:
            client.send(b"x")
            assert used.puppet("k, _ = l.accept(); k.recv(9)") is None
            assert used.puppet("k.close()") is None
    assert used.puppet("l.close()") is None

    for which in ("tx_wire_bytes", "rx_wire_bytes"):
        assert CONNECTIONS < used.bytes(which) < CONNECTIONS * PACKET_BYTES_MAX


def test_what_a_cut_socket_used_stays_charged(used: Used, recorder: Recorder) -> None:
    size = 200_000
    used.enforce(place(recorder.port))
    connect = f's = socket.create_connection(("127.0.0.1", {recorder.port}), 30)'
    assert used.puppet(connect) is None
    assert used.puppet(f"s.sendall(bytes({size}))") is None
    eventually(lambda: used.bytes("tx_wire_bytes") >= size, "it is charged while it is open", 20)

    used.agent.revoke(used.jti)

    assert used.puppet("s.send(b'more')") == "ECONNABORTED"
    assert used.puppet("s.close()") is None
    assert used.bytes("tx_wire_bytes") >= size
    assert used.puppet(connect) == "EKEYREVOKED"


def test_sending_elsewhere_takes_nothing_from_the_bill(used: Used, recorder: Recorder) -> None:
    size, count = 1000, 50
    used.enforce(place(recorder.port, "udp"))
    kind = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    connect = f'{kind}; s.connect(("127.0.0.1", {recorder.port}))'
    assert used.puppet(connect) is None
    for _ in range(count):
        assert used.puppet(f"s.send(bytes({size}))") == size
    before = used.bytes("tx_wire_bytes")
    assert before >= size * count

    # To somebody whom no resource names: the socket is not the license's any more.
    assert used.puppet(f's.sendto(b"", ("127.0.0.1", {recorder.decoy_port}))') == 0
    assert used.bytes("tx_wire_bytes") >= before
    assert used.puppet("s.close()") is None
    assert before <= used.bytes("tx_wire_bytes") < 2 * before
