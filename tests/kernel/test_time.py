# SPDX-License-Identifier: Apache-2.0
"""Licenses begin and end on time, in the kernel, also with the daemon dead; and their sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.probes import Probes, ask, eventually, free_ports

from licagent.domain.reason import Reason
from licagent.host.posture import boottime_ns
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.licenses import LicenseTable
from licagent.kernel.numbers import NANOSECONDS_MAX

pytest_plugins = ["tests.kernel.harness.kept"]

SHORT_S: Final = 6
"""What is left of a license that a test sees to its end, once everything is set up."""
SETTLED_S: Final = 1.0
"""For what is said not to happen any more: so long it is watched."""

Pair = tuple[AgentUnderTest, Probes]


@pytest.fixture
def pair(fresh_agent: AgentUnderTest) -> Iterator[Pair]:
    """A running agent of the test's own, and probes that are not started yet."""
    agent = fresh_agent
    with Probes(agent.cgroup) as probes:
        agent.start()
        yield agent, probes


def ends_at(agent: AgentUnderTest, jti: str) -> float:
    """The signed end of a license, in unix seconds."""
    (end,) = [
        row["expires_at"] for row in agent.call("license.list")["licenses"] if row["id"] == jti
    ]
    return datetime.fromisoformat(end).timestamp()


def slots_end(agent: AgentUnderTest, jti: str) -> float:
    """The end of a license in the kernel's table, in unix seconds."""
    table = LicenseTable(PinFolder(agent.bpffs))
    try:
        slot = table.get(agent._numbered[jti])
    finally:
        table.close()
    assert slot is not None
    return time.time() + (slot.not_after_ns - boottime_ns()) / 1e9


def wait_until(unix_s: float) -> None:
    """Sleep until after a moment of the wall clock."""
    time.sleep(max(0.0, unix_s - time.time()) + SETTLED_S)


def stays_silent(download: Any) -> dict[str, Any]:
    """Nothing arrives any more; the numbers."""
    time.sleep(SETTLED_S)  # what had come before is read
    before = ask(download)
    time.sleep(SETTLED_S)
    after = ask(download)
    assert after["received"] == before["received"], "bytes pass after the license's end"
    return after


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_download_stops_at_the_end_of_its_license_with_the_daemon_dead(
    pair: Pair, host: str
) -> None:
    agent, probes = pair
    pour, line = probes.open(probes.outside, "pour")
    probes.port = line["port"]
    agent.issue("short", ["probe", "offer"])
    agent.policy(probes.policy("short"))
    download, line = probes.open(probes.cgroups.licensed, "download", probes.port, host)
    assert line["open"], line
    agent.issue("short", ["probe", "offer"], expires_in_s=SHORT_S)
    end = ends_at(agent, "short")
    agent.kill()
    off_s = slots_end(agent, "short") - end
    assert abs(off_s) < 2, f"the kernel's end is {off_s:+} s off"

    wait_until(end)
    numbers = stays_silent(download)

    if ask(pour)["pause_s"] < 1:  # else nothing may have been there to receive
        assert end - 2 <= numbers["last_at"], f"it ended before its time: {numbers}, {end}"
    assert numbers["broken"] == "", "with the daemon dead a socket is silenced, not closed"
    for kind in ("tcp", "udp"):
        assert probes.once(probes.cgroups.licensed, kind, host) == "EKEYEXPIRED"

    # The daemon that comes back closes what is over.
    agent.start()
    eventually(lambda: ask(download)["broken"] == "ECONNABORTED", "the socket is closed")
    assert agent.count(verdict="cut", reason="expired", license="short") > 0
    assert agent.count(verdict="deny", reason="expired", license="short") == 2


def test_the_daemon_closes_the_sockets_of_a_license_that_ends(pair: Pair) -> None:
    agent, probes = pair
    agent.issue("short", ["probe", "offer"])
    agent.policy(probes.policy("short"))
    streams = probes.many(probes.cgroups.licensed)
    agent.issue("short", ["probe", "offer"], expires_in_s=SHORT_S)
    eventually(lambda: time.time() > ends_at(agent, "short"), "the license ends")

    eventually(lambda: _broken(streams) == {"ECONNABORTED": 8}, "the sockets are closed")


def _broken(streams: Any) -> dict[str, int]:
    broken: dict[str, int] = ask(streams)["broken"]
    return broken


def test_a_license_begins_on_time_with_the_daemon_dead(pair: Pair) -> None:
    agent, probes = pair
    agent.issue("early", ["probe", "offer"], starts_in_s=3000)
    agent.policy(probes.policy("early"))
    licensed = probes.cgroups.licensed
    assert probes.once(licensed) == "EKEYEXPIRED"
    assert agent.count(verdict="deny", reason="not_yet_valid", license="early") == 1
    begins = time.time() + SHORT_S
    agent.issue("early", ["probe", "offer"], starts_in_s=SHORT_S + 1)
    agent.kill()

    eventually(lambda: probes.once(licensed) == "", "the license begins")

    assert time.time() >= begins, "it began before its time"
    assert probes.once(probes.cgroups.unlicensed) == "ENOKEY"
    assert probes.once(licensed, "bind-udp", port=probes.service) == ""


def test_a_revocation_ends_exactly_the_sockets_of_its_license(pair: Pair) -> None:
    agent, probes = pair
    other = probes.cgroup("other")
    for jti in ("one", "two"):
        agent.issue(jti, ["probe", "offer"])
    agent.policy(
        probes.policy(
            "one", extra='[[binding]]\nlicense = "two"\nselectors = ["cgroup:path:/other"]\n'
        )
    )
    ones, twos = probes.many(probes.cgroups.licensed), probes.many(other)

    result = agent.revoke("one")

    assert result["sockets_cut"] == 8
    assert ask(ones) == {"alive": 0, "broken": {"ECONNABORTED": 8}, "silent": 0}
    assert ask(twos) == {"alive": 8, "broken": {}, "silent": 0}
    assert probes.once(probes.cgroups.licensed) == "EKEYREVOKED"
    assert probes.once(other) == ""
    assert agent.count(verdict="cut", license="two") == 0


def test_a_revocation_is_seen_by_the_next_packet_with_no_daemon_to_close_the_socket(
    pair: Pair,
) -> None:
    """The kernel's table says revoked; nobody walks the sockets."""
    agent, probes = pair
    _, line = probes.open(probes.outside, "pour")
    probes.port = line["port"]
    agent.issue("one", ["probe", "offer"])
    agent.policy(probes.policy("one"))
    download, _ = probes.open(probes.cgroups.licensed, "download", probes.port)
    agent.kill()
    # What `license revoke` stores first, without what it does next.
    table = LicenseTable(PinFolder(agent.bpffs))
    try:
        table.set(agent._numbered["one"], Reason.REVOKED, 0, NANOSECONDS_MAX)
    finally:
        table.close()

    numbers = stays_silent(download)

    assert numbers["broken"] == ""
    assert probes.once(probes.cgroups.licensed) == "EKEYREVOKED"


def test_accepted_sockets_are_cut_with_the_license_of_their_listener(pair: Pair) -> None:
    agent, probes = pair
    other = probes.cgroup("other")
    ports = free_ports(2, socket.SOCK_STREAM)
    for jti in ("one", "two"):
        agent.issue(jti, ["probe", "offer", "web"])
    agent.policy(
        probes.policy(
            "one",
            extra=(
                '[[binding]]\nlicense = "two"\nselectors = ["cgroup:path:/other"]\n'
                '[[resource]]\nname = "web"\nkind = "service"\nmode = "enforce"\n'
                f'ports = ["{ports[0]}", "{ports[1]}"]\nprotocol = "tcp"\n'
            ),
        )
    )
    servers, clients = [], []
    for cgroup, port in zip((probes.cgroups.licensed, other), ports, strict=True):
        server, line = probes.open(cgroup, "serve", port)
        assert line.get("serving"), line
        servers.append(server)
        client, line = probes.open(probes.outside, "many", port, 6)
        assert line["alive"] == 6, line
        clients.append(client)
    assert probes.open(probes.cgroups.unlicensed, "serve", ports[0])[1]["errno"] == "ENOKEY"

    result = agent.revoke("one")

    # What was accepted, and the two listeners themselves.
    assert result["sockets_cut"] == 6 + 2, result
    numbers = ask(servers[0])
    assert numbers["accepted"] == 0, numbers
    assert numbers["listening"] == 0, numbers
    assert ask(clients[0])["alive"] == 0
    assert ask(clients[1]) == {"alive": 6, "broken": {}, "silent": 0}
    assert ask(servers[1])["accepted"] == 6
    assert probes.open(probes.cgroups.licensed, "serve", ports[0])[1]["errno"] == "EKEYREVOKED"


def test_suspension_and_reinstatement_by_signed_statements(pair: Pair) -> None:
    agent, probes = pair
    agent.issue("one", ["probe", "offer"])
    agent.policy(probes.policy("one"))
    streams = probes.many(probes.cgroups.licensed)

    agent.call("license.revoke", statement=agent.statement("one", "suspend"))
    assert ask(streams)["broken"] == {"ECONNABORTED": 8}
    assert probes.once(probes.cgroups.licensed) == "EKEYREVOKED"
    # The statement of the higher generation decides (lictoken.validity.standing).
    agent.call("license.revoke", statement=agent.statement("one", "reinstate", generation=2))

    assert probes.once(probes.cgroups.licensed) == ""
    assert ask(streams)["alive"] == 0, "what was cut stays cut"


@pytest.mark.parametrize("is_killed", [False, True], ids=["daemon", "no-daemon"])
@pytest.mark.parametrize("how", ["second license", "newer generation"])
def test_a_renewal_keeps_sockets_alive(pair: Pair, how: str, is_killed: bool) -> None:
    agent, probes = pair
    agent.issue("one", ["probe", "offer"])
    text = probes.policy("one")
    if how == "second license":
        agent.issue("two", ["probe", "offer"])
        text = text.replace(
            "[[binding]]",
            '[[binding]]\nlicense = "two"\nselectors = ["cgroup:path:/licensed"]\n\n[[binding]]',
        )
    agent.policy(text)
    streams = probes.many(probes.cgroups.licensed)
    agent.issue("one", ["probe", "offer"], expires_in_s=SHORT_S)
    end = ends_at(agent, "one")
    if how == "newer generation":
        agent.issue("one", ["probe", "offer"], expires_in_s=3600)
        assert ends_at(agent, "one") > end + 60
    if is_killed:
        agent.kill()

    wait_until(end)

    assert ask(streams) == {"alive": 8, "broken": {}, "silent": 0}
    assert probes.once(probes.cgroups.licensed) == ""
    if not is_killed:
        assert agent.count(verdict="cut") == 0


def test_a_second_license_takes_over_when_the_first_is_revoked(pair: Pair) -> None:
    agent, probes = pair
    for jti in ("one", "two"):
        agent.issue(jti, ["probe", "offer"])
    agent.policy(
        probes.policy(
            "one", extra='[[binding]]\nlicense = "two"\nselectors = ["cgroup:path:/licensed"]\n'
        )
    )
    streams = probes.many(probes.cgroups.licensed)
    used = {
        jti for jti in ("one", "two") if agent.count(verdict="allow", license=jti, resource="probe")
    }
    assert len(used) == 1, "one license carries all of them"
    first = used.pop()

    assert agent.revoke(first)["sockets_cut"] == 0
    assert ask(streams)["alive"] == 8
    agent.revoke(({"one", "two"} - {first}).pop())
    assert ask(streams)["broken"] == {"ECONNABORTED": 8}
