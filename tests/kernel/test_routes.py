# SPDX-License-Identifier: Apache-2.0
"""No way round: every route that works without the agent, walked under it in enforce mode.

What counts is what the server got, not what the program says. test_routes_bare.py shows that
each of these routes works when no agent is there. The subjects are two cgroups below the
enforced root, "licensed" and "unlicensed"; tests of other identities say so.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.enforced import RESOURCES, Bench, go, new_jti, policy_text
from tests.kernel.harness.probes import eventually
from tests.kernel.harness.programs import PYTHON
from tests.kernel.harness.walk import World, walk
from tests.kernel.routes.catalogue import ROUTES

pytest_plugins = ["tests.kernel.harness.fixtures"]

NOBODY: Final = 65534
ERRNO_KERNEL: Final = (5, 18)
"""First kernel on which a cgroup program chooses the errno (bpf_set_retval)."""

AS_UNLICENSED: Final[dict[str, bool]] = {
    # TCP and UDP are decided for who uses the socket, at the time of use: it is licensed by then.
    "move_before_connect4": True,
    "move_before_sendto4": True,
}
"""Routes whose answer for an unlicensed subject is not "the server gets nothing"."""

AS_LICENSED: Final[dict[str, bool]] = {
    "move_before_connect4": False,  # moved out of its license before the use
    "move_before_sendto4": False,
    "move_outside_after_socket4": False,
    # A fragment without ports may be for any port of a licensed network: refused as malformed.
    # (What the kernel itself fragments has passed the hook whole: udp_fragmented.)
    "raw_fragments4": False,
    "raw_fragments_reversed4": False,
    "raw_fragments6": False,
}
"""Routes whose answer for a licensed subject is not "the server gets it"."""

BEFORE_THE_TARGET: Final = frozenset({"start", "setup", "option", "decoy", "disconnect"})
"""Stages in which nothing is licensed yet: a refusal there would hide the route's answer."""


@pytest.fixture
def bench(agent: Any, outside_tree: CgroupTree) -> Iterator[Bench]:
    with (
        CgroupTree(agent.cgroup, "licensed") as licensed,
        CgroupTree(agent.cgroup, "unlicensed") as unlicensed,
    ):
        yield Bench(agent, licensed.root, unlicensed.root, outside_tree.root)


CLOSED: Final = [name for name, route in ROUTES.items() if not route.open_as]
OPEN: Final = [name for name, route in ROUTES.items() if route.open_as]
TWO_ROUNDS: Final = [name for name, route in ROUTES.items() if route.rounds == 2]


@pytest.mark.parametrize("name", CLOSED)
def test_an_unlicensed_subject_reaches_nothing(name: str, bench: Bench, world: World) -> None:
    expected = AS_UNLICENSED.get(name, False)
    result = go(bench, world, name, bench.unlicensed, answers=2 if expected else 0)

    assert result.arrived == expected, f"{ROUTES[name].summary} {result}"
    assert result.stage not in BEFORE_THE_TARGET, f"it was stopped before the target: {result}"
    assert not result.second_arrived, result


@pytest.mark.parametrize("name", CLOSED)
def test_a_licensed_subject_passes(name: str, bench: Bench, world: World) -> None:
    expected = AS_LICENSED.get(name, True)
    result = go(bench, world, name, bench.licensed, answers=2 if expected else 0)

    assert result.arrived == expected, f"{ROUTES[name].summary} {result}"
    assert result.second_arrived == (expected and ROUTES[name].rounds == 2), result


@pytest.mark.parametrize("name", OPEN)
def test_a_route_below_the_hooks_is_closed_or_in_the_coverage_table(
    name: str, bench: Bench, world: World
) -> None:
    result = go(bench, world, name, bench.unlicensed, answers=0)

    assert result.arrived == bench.is_open(ROUTES[name].open_as), result


@pytest.mark.parametrize("name", TWO_ROUNDS)
def test_an_open_socket_is_cut_when_its_license_is_revoked(
    name: str, bench: Bench, world: World
) -> None:
    result = go(bench, world, name, bench.licensed, midway=bench.agent.revoke, answers=1)

    assert result.arrived, f"{ROUTES[name].summary} {result}"
    assert not result.second_arrived, f"{ROUTES[name].summary} {result}"


@pytest.mark.parametrize("name", ["scm_connected_tcp4", "pidfd_connected_tcp4"])
def test_a_license_covers_a_socket_that_another_licensed_process_hands_over(
    name: str, bench: Bench, world: World
) -> None:
    assert go(bench, world, name, bench.licensed).arrived


@pytest.mark.parametrize(
    "name",
    [
        *("tcp_connect4", "tcp_connect6", "tcp_msg_fastopen4", "mptcp_connect4", "mapped_tcp"),
        *("udp_sendto4", "udp_sendto6", "udp_connected_send4", "uring_tcp4", "serve_tcp4"),
        *("uring_polled_tcp4", "serve_udp6", "inet_sendto_on_udp6", "icmp_ping_connected4"),
    ],
)
def test_a_refused_call_says_that_a_key_is_missing(name: str, bench: Bench, world: World) -> None:
    result = go(bench, world, name, bench.unlicensed)

    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    expected = errno.ENOKEY if release >= ERRNO_KERNEL else errno.EPERM
    assert result.outcome == "refused", result
    assert result.errno == errno.errorcode[expected], result


@pytest.mark.parametrize("cidr", ["::ffff:127.0.0.1/128", "::ffff:0:0/96"])
@pytest.mark.parametrize("name", ["tcp_connect4", "udp_sendto4", "mapped_tcp"])
def test_a_policy_that_names_the_mapped_address_means_the_ipv4_one(
    name: str, cidr: str, bench: Bench, world: World
) -> None:
    route, jti = ROUTES[name], new_jti()
    target = world.target(route)
    bench.agent.issue(jti, resources=list(RESOURCES), expires_in_s=3600)
    text = policy_text(route, target, jti, ("cgroup:path:/licensed",))
    bench.agent.policy(text.replace(route.cidr, cidr))

    refused = walk(route, world, bench.unlicensed, bench.surroundings(bench.unlicensed), target)
    passed = walk(route, world, bench.licensed, bench.surroundings(bench.licensed), target)

    assert not refused.arrived
    assert passed.arrived


@pytest.mark.parametrize(
    ("name", "selector", "arrives"),
    [
        ("setuid_before4", f"unix:uid:{NOBODY}", True),
        ("setuid_after4", f"unix:uid:{NOBODY}", True),
        ("setuid_after_udp4", f"unix:uid:{NOBODY}", True),
        ("tcp_connect4", f"unix:uid:{NOBODY}", False),
        ("setuid_before4", "unix:uid:0", False),
        ("setuid_after4", "unix:uid:0", False),
        ("setuid_after_udp4", "unix:uid:0", False),
        ("setuid_before4", f"unix:gid:{NOBODY}", True),
        ("setuid_before4", "unix:gid:0", False),
        ("tcp_connect4", "unix:uid:0", True),
    ],
)
def test_the_user_counts_at_the_time_of_use(
    name: str, selector: str, arrives: bool, bench: Bench, world: World
) -> None:
    result = go(bench, world, name, bench.unlicensed, selectors=(selector,))

    assert result.arrived == arrives, result
    assert result.stage not in BEFORE_THE_TARGET, result


def test_an_open_socket_keeps_the_license_it_was_opened_under(bench: Bench, world: World) -> None:
    moved = go(bench, world, "open_moved4", bench.licensed)
    changed = go(bench, world, "open_setuid4", bench.unlicensed, selectors=("unix:uid:0",))

    assert moved.second_arrived
    assert changed.second_arrived


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """A copy of the interpreter: another executable, as far as a unix:path selector goes."""
    copy = tmp_path / "python-of-another-name"
    shutil.copy2(Path(sys.executable).resolve(), copy)
    return copy


def _as_python(executable: Path) -> tuple[str, ...]:
    # env(1) because an interpreter outside its prefix must be told where its library is
    return ("/usr/bin/env", f"PYTHONHOME={sys.base_prefix}", str(executable), *PYTHON[1:])


@pytest.mark.parametrize(
    ("first_is_licensed", "arrives"), [(True, False), (False, True)], ids=["leaves", "enters"]
)
def test_a_socket_made_before_exec_is_used_by_what_runs_after_it(
    first_is_licensed: bool, arrives: bool, bench: Bench, world: World, other_python: Path
) -> None:
    mine = Path(sys.executable).resolve()
    first, then = (other_python, mine) if first_is_licensed else (mine, other_python)

    result = go(
        bench,
        world,
        "exec_made4",
        bench.unlicensed,
        selectors=(f"unix:path:{other_python}",),
        python=_as_python(first),
        options={"executable": str(then)},
    )

    assert result.arrived == arrives, result


def test_a_connected_socket_inherited_over_exec_is_closed_or_in_the_coverage_table(
    bench: Bench, world: World, other_python: Path
) -> None:
    result = go(
        bench,
        world,
        "exec_connected4",
        bench.unlicensed,
        selectors=(f"unix:path:{other_python}",),
        python=_as_python(other_python),
        options={"executable": str(Path(sys.executable).resolve())},
        answers=0,
    )

    assert result.arrived == bench.is_open("exec"), result


def test_refusals_are_counted_and_told(bench: Bench, world: World) -> None:
    before = bench.agent.last_event()
    result = go(bench, world, "tcp_connect4", bench.unlicensed)

    assert not result.arrived

    def told() -> bool:
        events = [event for event in bench.agent.events() if event["seq"] > before]
        return any("NO_BINDING" in str(event).upper() for event in events)

    # The daemon reads the ring buffer in its own time.
    eventually(told, "the refusal is among the events")
    assert any("NO_BINDING" in str(row).upper() for row in bench.agent.counters())
