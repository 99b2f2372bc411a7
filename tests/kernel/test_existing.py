# SPDX-License-Identifier: Apache-2.0
"""Sockets that are older than the agent: tagged where a license covers them, else cut or kept."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.probes import Probes, ask, free_ports

CUT = {"alive": 0, "broken": {"ECONNABORTED": 8}, "silent": 0}
ALIVE = {"alive": 8, "broken": {}, "silent": 0}


@contextmanager
def before_the_agent(
    agent: AgentUnderTest,
) -> Iterator[tuple[Probes, Any, Any]]:
    """License and policy lie ready; both subjects have connections; no agent was ever here."""
    with Probes(agent.cgroup) as probes:
        licensed = probes.many(probes.cgroups.licensed)
        unlicensed = probes.many(probes.cgroups.unlicensed)
        agent.issue("one", ["probe", "offer"])
        agent.policy(probes.policy("one"))
        yield probes, licensed, unlicensed


def holders(agent: AgentUnderTest, jti: str) -> int:
    """Sockets that carry a license's tag."""
    rows = {row["id"]: row for row in agent.call("license.list")["licenses"]}
    return int(rows[jti]["holders"])


def test_older_sockets_are_tagged_or_cut(make_agent: Callable[..., AgentUnderTest]) -> None:
    agent = make_agent()
    with before_the_agent(agent) as (probes, licensed, unlicensed):
        agent.start()

        assert ask(licensed) == ALIVE
        assert ask(unlicensed) == CUT
        assert holders(agent, "one") == 8
        assert agent.count(verdict="allow", license="one", resource="probe") == 8
        assert agent.count(verdict="cut", reason="no_binding", resource="probe") >= 8
        # A tag like any other: it ends with its license.
        agent.revoke("one")
        assert ask(licensed) == CUT
        assert probes.once(probes.cgroups.licensed) == "EKEYREVOKED"


def test_older_sockets_are_kept_where_the_settings_say_so(
    make_agent: Callable[..., AgentUnderTest],
) -> None:
    agent = make_agent(settings='existing_sockets = "keep"')
    with before_the_agent(agent) as (probes, licensed, unlicensed):
        agent.start()

        assert ask(licensed) == ALIVE
        assert ask(unlicensed) == ALIVE
        assert agent.count(verdict="shadow", reason="no_binding", resource="probe") == 8
        assert {row["resource"] for row in agent.call("status")["shadow"]} == {"probe"}
        # Only what was open: whatever is opened now needs a license.
        assert probes.once(probes.cgroups.unlicensed) == "ENOKEY"
        agent.kill()
        agent.start()
        assert ask(unlicensed) == ALIVE


@pytest.mark.parametrize("setting", ["cut", "keep"])
def test_sockets_older_than_the_policy_are_treated_alike(
    make_agent: Callable[..., AgentUnderTest], setting: str
) -> None:
    """The agent ran, but no resource was named until now."""
    agent = make_agent(settings=f'existing_sockets = "{setting}"')
    with Probes(agent.cgroup) as probes:
        agent.start()
        licensed = probes.many(probes.cgroups.licensed)
        unlicensed = probes.many(probes.cgroups.unlicensed)
        agent.issue("one", ["probe", "offer"])

        agent.policy(probes.policy("one"))

        assert ask(licensed) == ALIVE
        assert ask(unlicensed) == (CUT if setting == "cut" else ALIVE)
        assert holders(agent, "one") == 8


def test_older_listeners_and_what_they_accepted(make_agent: Callable[..., AgentUnderTest]) -> None:
    agent = make_agent()
    ports = free_ports(2, socket.SOCK_STREAM)
    with Probes(agent.cgroup) as probes:
        clients, servers = [], []
        cgroups = (probes.cgroups.licensed, probes.cgroups.unlicensed)
        for cgroup, port in zip(cgroups, ports, strict=True):
            servers.append(probes.open(cgroup, "serve", port)[0])
            client, line = probes.open(probes.outside, "many", port, 8)
            assert line == ALIVE
            clients.append(client)
        agent.issue("one", ["probe", "offer", "web"])
        agent.policy(
            probes.policy(
                "one",
                extra=(
                    '[[resource]]\nname = "web"\nkind = "service"\nmode = "enforce"\n'
                    f'ports = ["{ports[0]}", "{ports[1]}"]\nprotocol = "tcp"\n'
                ),
            )
        )

        agent.start()

        assert ask(clients[0]) == ALIVE
        assert ask(clients[1])["alive"] == 0
        # The licensed one goes on accepting; the other does not.
        assert probes.open(probes.outside, "many", ports[0], 2)[1]["alive"] == 2
        assert ask(servers[1])["listening"] == 0
        assert probes.open(probes.cgroups.unlicensed, "serve", ports[1])[1]["errno"] == "ENOKEY"
        # What the listener accepted before has its tag, too.
        agent.revoke("one")
        assert ask(clients[0])["alive"] == 0
