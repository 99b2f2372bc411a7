# SPDX-License-Identifier: Apache-2.0
"""Packet sockets: the tc program on every interface, and whom it lets through.

That an unlicensed subject is refused on each of these routes, and that they work without the
agent, is in test_routes.py and test_routes_bare.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.enforced import Bench, go
from tests.kernel.harness.namespaces import Netns
from tests.kernel.harness.probes import eventually
from tests.kernel.harness.walk import World, walk
from tests.kernel.routes.catalogue import ROUTES
from tests.kernel.routes.packet import PAST_QDISC, THROUGH_QDISC

from licagent.daemon.control.link_watch import on_link_changes
from licagent.kernel import bpf_info, libbpf

pytest_plugins = ["tests.kernel.harness.fixtures"]

HIDDEN: Final = frozenset({"packet_many_vlans4", "packet_fragments4"})
"""Frames that do not say whether they are for a licensed port: refused to everybody."""

SEEN: Final = [
    name for name, route in ROUTES.items() if route.open_as == THROUGH_QDISC and name not in HIDDEN
]


@pytest.fixture(autouse=True)
def _needs_tcx(agent: AgentUnderTest) -> None:
    row = next(row for row in agent.coverage() if row["hook"] == "tc_egress")
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 6):
        pytest.skip("TCX needs Linux 6.6")
    assert row["state"] == "closed", row


@pytest.fixture
def bench(agent: AgentUnderTest, outside_tree: CgroupTree) -> Iterator[Bench]:
    with (
        CgroupTree(agent.cgroup, "licensed") as licensed,
        CgroupTree(agent.cgroup, "unlicensed") as unlicensed,
    ):
        yield Bench(agent, licensed.root, unlicensed.root, outside_tree.root)


def pins(agent: AgentUnderTest, space: Netns) -> dict[str, int]:
    """The links of a namespace: name of the pin, and the interface it is on."""
    inode = os.fstat(space.descriptor).st_ino
    found = {}
    for pin in (agent.bpffs / "links").glob(f"tc_{inode}_*"):
        fd = libbpf.open_pin(pin)
        try:
            found[pin.name] = bpf_info.link_info(fd).ifindex
        finally:
            os.close(fd)
    return found


def numbers(agent: AgentUnderTest, space: Netns) -> set[int]:
    return {number for name, number in pins(agent, space).items() if name.endswith(f"_{number}")}


@pytest.mark.parametrize("name", SEEN)
def test_a_licensed_cgroup_sends_frames(name: str, bench: Bench, world: World) -> None:
    assert go(bench, world, name, bench.licensed).arrived


@pytest.mark.parametrize("name", ["packet_raw4", "packet_fragments4", "packet_many_vlans4"])
def test_other_cgroups_are_left_alone(name: str, bench: Bench, world: World) -> None:
    assert go(bench, world, name, bench.outside).arrived


@pytest.mark.parametrize(
    ("selector", "arrives"),
    [
        ("unix:uid:0", True),
        ("unix:uid:1", False),
        ("host", True),
        ("unix:gid:0", False),
        (f"unix:path:{Path(sys.executable).resolve()}", False),
    ],
)
def test_a_packet_socket_is_known_by_user_and_cgroup_alone(
    selector: str, arrives: bool, bench: Bench, world: World
) -> None:
    result = go(bench, world, "packet_raw4", bench.unlicensed, selectors=(selector,))

    assert result.arrived == arrives, result


def test_frames_to_no_resource_pass(bench: Bench, world: World) -> None:
    bench.enforce(ROUTES["packet_raw6"], world.target(ROUTES["packet_raw6"]))
    route = ROUTES["packet_raw4"]
    surroundings = bench.surroundings(bench.unlicensed)
    assert walk(route, world, bench.unlicensed, surroundings, world.target(route)).arrived


def test_refused_frames_are_counted_and_told(bench: Bench, world: World) -> None:
    def told(reason: str) -> int:
        return sum(
            event.get("hook") == "interface" and event.get("reason") == reason
            for event in bench.agent.events()
        )

    time.sleep(1.2)  # repeats of an older refusal would be told without their hook (report.h)
    counted = bench.agent.count(reason="no_binding", verdict="deny")
    before = told("no_binding")
    assert not go(bench, world, "packet_raw4", bench.unlicensed).arrived
    assert bench.agent.count(reason="no_binding", verdict="deny") == counted + 1
    eventually(lambda: told("no_binding") > before, "the refusal is told")

    counted = bench.agent.count(reason="malformed", verdict="deny")
    assert not go(bench, world, "packet_many_vlans4", bench.unlicensed).arrived
    assert bench.agent.count(reason="malformed", verdict="deny") == counted + 1


@pytest.mark.parametrize("name", ["packet_raw4", *sorted(HIDDEN)])
def test_break_glass_lets_frames_through(name: str, bench: Bench, world: World) -> None:
    bench.agent.call("break_glass", for_s=60, reason="test")
    try:
        assert go(bench, world, name, bench.unlicensed).arrived
    finally:
        bench.agent.call("break_glass", end=True)
    assert not go(bench, world, name, bench.unlicensed).arrived


def test_frames_are_refused_while_the_daemon_is_dead(bench: Bench, world: World) -> None:
    assert not go(bench, world, "packet_raw4", bench.unlicensed).arrived
    route = ROUTES["packet_raw4"]
    bench.agent.kill()
    try:
        for subject, arrives in ((bench.unlicensed, False), (bench.licensed, True)):
            surroundings = bench.surroundings(subject)
            result = walk(route, world, subject, surroundings, world.target(route))
            assert result.arrived == arrives, result
    finally:
        bench.agent.start()


def test_interfaces_that_come_go_and_move_are_followed(agent: AgentUnderTest) -> None:
    with Netns.new().inhabit() as one, Netns.new().inhabit() as two:
        peer = f"/proc/{os.getpid()}/fd/{two.descriptor}"
        one.ip("link", "add", "here", "type", "veth", "peer", "name", "there", "netns", peer)
        eventually(lambda: len(numbers(agent, one)) == 2, "lo and here are covered")
        eventually(lambda: len(numbers(agent, two)) == 2, "lo and there are covered")

        one.ip("link", "set", "here", "netns", peer)
        eventually(lambda: len(numbers(agent, two)) == 3, "what moved has its link")
        eventually(lambda: len(pins(agent, one)) == 1, "and no other")

        two.ip("link", "delete", "here")
        eventually(lambda: len(pins(agent, two)) == 1, "links of what is gone are removed")


def test_a_new_interface_is_told_at_once(netns: Netns) -> None:
    async def watch() -> None:
        called = asyncio.Event()

        async def action() -> None:
            called.set()

        watching = asyncio.create_task(on_link_changes(action, at_least_every_s=3600))
        await asyncio.sleep(0)
        maker = await asyncio.create_subprocess_exec("ip", "link", "add", "one", "type", "veth")
        assert await maker.wait() == 0
        await asyncio.wait_for(called.wait(), 30)
        watching.cancel()

    netns.run(lambda: asyncio.run(watch()))


def test_a_link_that_somebody_takes_away_is_made_again(agent: AgentUnderTest) -> None:
    with Netns.new().inhabit() as space:
        eventually(lambda: len(numbers(agent, space)) == 1, "lo is covered")
        (name,) = pins(agent, space)
        (agent.bpffs / "links" / name).unlink()

        def is_whole() -> bool:
            (row,) = (row for row in agent.coverage() if row["hook"] == "tc_egress")
            return row["state"] == "closed" and len(numbers(agent, space)) == 1

        eventually(is_whole, "it is made again")


def test_agents_beside_each_other_have_links_of_their_own(
    agent: AgentUnderTest, make_agent: Callable[..., AgentUnderTest]
) -> None:
    with Netns.new().inhabit() as space:
        eventually(lambda: len(numbers(agent, space)) == 1, "lo is covered")
        before = pins(agent, space)
        second = make_agent()
        second.start()
        eventually(lambda: pins(second, space) == before, "by the second, too")
        second.close()
        assert pins(agent, space) == before


@pytest.mark.parametrize("name", ["packet_bypass4", "packet_loopback_bypass4"])
def test_what_passes_the_qdisc_by_is_in_the_table(name: str, bench: Bench, world: World) -> None:
    assert ROUTES[name].open_as == PAST_QDISC
    assert bench.is_open(PAST_QDISC)
    assert go(bench, world, name, bench.unlicensed).arrived
