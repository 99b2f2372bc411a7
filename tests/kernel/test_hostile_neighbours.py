# SPDX-License-Identifier: Apache-2.0
"""A licensed network on the link: the kernel must still find its neighbours there."""

from __future__ import annotations

import os
from typing import Final

from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import binding
from tests.kernel.harness.namespaces import Netns
from tests.kernel.harness.probes import eventually
from tests.kernel.harness.recorder import Recorder
from tests.kernel.harness.sides import network
from tests.kernel.harness.subjects import NO_LICENSE, new_jti
from tests.kernel.routes import addresses
from tests.kernel.test_hostile_sockets import NOBODY, puppet

pytest_plugins = ["tests.kernel.harness.fixtures"]

_NEW_NETWORK: Final = "ctypes.CDLL(None).unshare(0x40000000)"
"""CLONE_NEWNET, by a process that is enforced: its kernel sockets are in that cgroup, too."""


def join(near: Netns, far: Netns) -> None:
    """A veth pair between two namespaces, with IPv6 on it."""
    near.ip("link", "set", "lo", "up")
    near.ip(
        *("link", "add", addresses.CLIENT_LINK, "type", "veth", "peer"),
        *("name", addresses.SERVER_LINK, "netns", f"/proc/{os.getpid()}/fd/{far.descriptor}"),
    )
    for namespace, link, address in (
        (near, addresses.CLIENT_LINK, addresses.CLIENT6),
        (far, addresses.SERVER_LINK, addresses.SERVER6),
    ):
        namespace.ip("address", "add", f"{address}/64", "dev", link, "nodad")
        namespace.ip("link", "set", link, "up")


def test_neighbours_are_found_on_a_link_that_is_a_resource(agent: AgentUnderTest) -> None:
    """Every protocol of the link's network is named, and nobody in the cgroup has a license."""
    jti = new_jti()
    agent.policy("")
    agent.issue(jti, ["r"])
    with (
        Netns.new() as far,
        CgroupTree(agent.cgroup) as yes,
        CgroupTree(agent.cgroup) as no,
        puppet(no.root, None) as owner,
    ):
        assert owner(_NEW_NETWORK) == 0
        with (
            Netns.of(owner.pid) as near,
            puppet(yes.root, NOBODY, namespace=near) as licensed,
        ):
            join(near, far)

            with Recorder((addresses.SERVER6,), far) as recorder:
                connect = (
                    f's = socket.create_connection(("{addresses.SERVER6}", {recorder.port}), 8);'
                    "s.settimeout(8)"
                )
                eventually(lambda: licensed(connect) is None, "the link is up")

                agent.policy(
                    network('{ cidr = "fd77::/64" }')
                    + binding(jti, f"cgroup:path:/{yes.root.name}")
                )

                assert owner(connect) == NO_LICENSE
                assert agent.count(verdict="deny", resource="r") >= 1
                for step in (b"a connection that was open", b"a fresh one"):
                    # The far side asks for us again; the answer goes to an address of the resource.
                    far.ip("-6", "neigh", "flush", "dev", addresses.SERVER_LINK)
                    if step == b"a fresh one":
                        assert licensed(connect) is None
                    assert licensed(f"s.send({step!r})") == len(step)
                    assert licensed("s.recv(99)") == step.decode()
                    assert recorder.kinds_that_got(step) == {"tcp6"}


def test_a_programs_own_neighbour_messages_are_packets_like_others(agent: AgentUnderTest) -> None:
    """Only the kernel's pass: what a raw socket calls a solicitation may carry anything."""
    jti = new_jti()
    agent.policy("")
    agent.issue(jti, ["r"])
    with CgroupTree(agent.cgroup) as yes, CgroupTree(agent.cgroup) as no:
        agent.policy(
            network('{ cidr = "::1/128" }') + binding(jti, f"cgroup:path:/{yes.root.name}")
        )
        make = "s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)"
        send = 's.sendto(bytes([135, 0, 0, 0]) + b"anything", ("::1", 0))'
        with puppet(no.root, None) as unlicensed, puppet(yes.root, None) as licensed:
            assert unlicensed(make) is None
            assert unlicensed(send) == "EPERM"
            assert licensed(make) is None
            assert licensed(send) == 12
