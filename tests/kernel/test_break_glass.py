# SPDX-License-Identifier: Apache-2.0
"""Never locked out: the failsafe list, observe mode, and break-glass with its end in the kernel."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.namespaces import Netns
from tests.kernel.harness.probes import SILENCE_S, Probes, ask, eventually
from tests.kernel.harness.programs import start

from licagent.domain.failsafe import read_resolvers

pytest_plugins = ["tests.kernel.harness.fixtures", "tests.kernel.harness.kept"]

OPEN_S: Final = 5
"""How long the glass is left broken once everything is set up."""

Pair = tuple[AgentUnderTest, Probes]


@pytest.fixture
def pair(fresh_agent: AgentUnderTest) -> Iterator[Pair]:
    """A running agent with a policy, and probes that are not started yet."""
    agent = fresh_agent
    with Probes(agent.cgroup) as probes:
        agent.start()
        agent.issue("one", ["probe", "offer"])
        agent.policy(probes.policy("one"))
        yield agent, probes


def glass_events(agent: AgentUnderTest) -> list[dict[str, Any]]:
    return [event for event in agent.events() if event["kind"] == "break-glass"]


@pytest.mark.parametrize("is_killed", [False, True], ids=["daemon", "no-daemon"])
def test_break_glass_opens_and_ends_in_the_kernel(pair: Pair, is_killed: bool) -> None:
    agent, probes = pair
    unlicensed = probes.cgroups.unlicensed
    licensed = probes.many(probes.cgroups.licensed)
    assert probes.once(unlicensed) == "ENOKEY"

    agent.call("break_glass", for_s=600, reason="the database is on fire")
    # Before anything is opened: the host is never open without a record.
    (record,) = glass_events(agent)
    assert "the database is on fire" in record["message"]
    assert record["until"]
    assert agent.call("status")["state"] == "break-glass"
    opened = probes.many(unlicensed)
    assert probes.once(unlicensed, "bind-udp", port=probes.service) == ""
    assert agent.count(verdict="allow", reason="break_glass", resource="probe") >= 8
    begun = time.monotonic()
    agent.call("break_glass", for_s=OPEN_S, reason="the fire is nearly out")
    if is_killed:
        agent.kill()

    eventually(lambda: probes.once(unlicensed) == "ENOKEY", "the host is closed again")
    assert time.monotonic() - begun >= OPEN_S, "it closed before its time"

    if is_killed:
        # Silenced by the kernel; nobody is there to close them.
        assert ask(opened, patience_s=SILENCE_S) == {"alive": 0, "broken": {}, "silent": 8}
        agent.start()
    eventually(lambda: ask(opened)["broken"] == {"ECONNABORTED": 8}, "its sockets are closed")
    assert ask(licensed) == {"alive": 8, "broken": {}, "silent": 0}
    # After a start, not before all interfaces are covered.
    eventually(lambda: agent.call("status")["state"] == "enforcing", "it enforces again")
    assert agent.call("status")["break_glass"] is None
    first, shorter, last = glass_events(agent)
    assert first["reason_text"] == "the database is on fire"
    assert shorter["reason_text"] == "the fire is nearly out"
    assert "closed again" in last["message"]


def test_break_glass_survives_a_restart_and_can_be_ended(pair: Pair) -> None:
    agent, probes = pair
    unlicensed = probes.cgroups.unlicensed
    agent.call("break_glass", for_s=3600, reason="maintenance")
    opened = probes.many(unlicensed)

    agent.kill()
    agent.start()

    assert agent.call("status")["state"] == "break-glass"
    assert ask(opened)["alive"] == 8
    assert probes.once(unlicensed) == ""
    assert agent.call("break_glass", end=True)["changed"]
    assert probes.once(unlicensed) == "ENOKEY"
    assert ask(opened)["broken"] == {"ECONNABORTED": 8}
    assert not agent.call("break_glass", end=True)["changed"]


def test_an_edit_of_the_kernels_table_is_no_break_glass(pair: Pair) -> None:
    """Open without a record: the next start closes it."""
    from licagent.kernel.bpffs import PinFolder
    from licagent.kernel.control import ControlWord

    agent, probes = pair
    agent.kill()
    control = ControlWord(PinFolder(agent.bpffs))
    control.break_glass_until_ns = 2**63
    control.close()
    assert probes.once(probes.cgroups.unlicensed) == ""

    agent.start()

    assert probes.once(probes.cgroups.unlicensed) == "ENOKEY"


@pytest.mark.parametrize("where", ["agent", "resource"])
def test_observe_lets_through_and_lists_shadow_usage(
    fresh_agent: AgentUnderTest, where: str
) -> None:
    agent = fresh_agent
    agent.mode = "observe" if where == "agent" else "enforce"
    with Probes(agent.cgroup) as probes:
        agent.start()
        agent.issue("one", ["probe", "offer"])
        agent.policy(probes.policy("one", mode="enforce" if where == "agent" else "observe"))
        unlicensed = probes.cgroups.unlicensed

        streams = probes.many(unlicensed)
        assert probes.once(unlicensed, "bind-udp", port=probes.service) == ""

        assert agent.count(verdict="shadow", reason="no_binding", resource="probe") >= 8
        assert agent.count(verdict="shadow", reason="no_binding", resource="offer") >= 1
        assert agent.count(verdict="deny") == 0
        state = "observing" if where == "agent" else "enforcing"
        eventually(lambda: agent.call("status")["state"] == state, state)
        rows = eventually(
            lambda: {row["resource"]: row for row in agent.call("status")["shadow"]},
            "shadow usage is listed",
        )
        row = rows["probe"]
        assert row["user"] == "root"
        assert Path(row["executable"]) == Path(sys.executable).resolve()
        assert 'license = "<a license for probe>"' in row["suggestion"]
        # The licensed are licensed all the same.
        assert probes.once(probes.cgroups.licensed) == ""
        assert agent.count(verdict="allow", license="one", resource="probe") == 1
        assert ask(streams)["alive"] == 8


EVERYTHING: Final = """
[[resource]]
name = "everywhere"
kind = "network"
mode = "enforce"
destinations = [{ cidr = "any" }]

[[resource]]
name = "every-port"
kind = "service"
mode = "enforce"
ports = ["1-65535"]
protocol = "any"

[[binding]]
license = "all"
selectors = ["cgroup:path:/licensed"]
"""

ELSEWHERE: Final = "203.0.113.9"
"""TEST-NET-3 (RFC 5737). The namespace has no route to it: what the hook lets pass fails later."""

_ATTEMPTS: Final = """
import errno, json, socket, sys
for family, kind, host, port in json.loads(sys.argv[1]):
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        try:
            sock.connect((host, port))
            print(json.dumps({"errno": ""}), flush=True)
        except OSError as error:
            print(json.dumps({"errno": errno.errorcode[error.errno]}), flush=True)
"""


@pytest.fixture
def locked(fresh_agent: AgentUnderTest, netns: Netns) -> Iterator[tuple[Any, ...]]:
    """Everything is licensed, and the unlicensed cgroup has a namespace of its own."""
    agent = fresh_agent
    with Probes(agent.cgroup) as probes:
        agent.start()
        agent.issue("all", ["everywhere", "every-port"])
        agent.policy(EVERYTHING)
        yield agent, probes, netns


def attempts(probes: Probes, netns: Netns, *wanted: tuple[str, str, int]) -> list[str]:
    """What becomes of connects (protocol, host, port) by the unlicensed, in the namespace."""
    import json

    rows = [
        (
            socket.AF_INET6 if ":" in host else socket.AF_INET,
            socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM,
            host,
            port,
        )
        for protocol, host, port in wanted
    ]
    argv = [sys.executable, "-S", "-c", _ATTEMPTS, json.dumps(rows)]
    with start(probes.cgroups.unlicensed, argv, namespace=netns) as program:
        return [(program.line() or {})["errno"] for _ in rows]


def test_the_failsafe_list_passes_when_everything_is_licensed(locked: tuple[Any, ...]) -> None:
    agent, probes, netns = locked
    passing = [
        *(("udp", ELSEWHERE, port) for port in (67, 68, 123)),
        *(("udp", "2001:db8::9", port) for port in (546, 547, 123)),
        *((kind, server, 53) for server in read_resolvers() for kind in ("udp", "tcp")),
    ]
    refused = [
        *(("udp", ELSEWHERE, port) for port in (66, 69, 122, 124, 53)),
        *(("tcp", ELSEWHERE, port) for port in (67, 123, 53, 22, 443)),
        *(("udp", "2001:db8::9", port) for port in (545, 548, 53)),
        ("tcp", "2001:db8::9", 22),
        ("udp", "127.0.0.1", 9999),
        ("tcp", "::1", 9999),
    ]
    assert read_resolvers(), "this host's resolv.conf names a server"

    # No route leads there: let through by the hook, they fail for want of one.
    assert set(attempts(probes, netns, *passing)) == {"ENETUNREACH"}
    assert set(attempts(probes, netns, *refused)) == {"ENOKEY"}
    assert agent.count(verdict="deny", resource="everywhere") == len(refused)


def test_ssh_into_a_host_whose_every_port_is_licensed(locked: tuple[Any, ...]) -> None:
    _, probes, netns = locked
    script = str(Path(__file__).with_name("harness") / "probe_streams.py")
    for port, errno_name in ((22, None), (23, "ENOKEY")):
        argv = [sys.executable, "-S", script, "serve", str(port)]
        with start(probes.cgroups.unlicensed, argv, namespace=netns) as server:
            line = server.line()
            assert line is not None
            assert line.get("errno") == errno_name, line
            if errno_name is None:
                argv = [sys.executable, "-S", script, "many", str(port), "4"]
                with start(probes.outside, argv, namespace=netns) as client:
                    assert client.line() == {"alive": 4, "broken": {}, "silent": 0}
                    assert ask(client) == {"alive": 4, "broken": {}, "silent": 0}
