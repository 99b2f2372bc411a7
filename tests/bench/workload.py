# SPDX-License-Identifier: Apache-2.0
"""Policies of the bench: the licensed destinations, and how much stands beside them."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from tests.bench.paired import BINARY
from tests.bench.places import CLIENT_UID, IPERF_PORT, PORT, SERVER

if TYPE_CHECKING:
    from tests.bench.agent import AgentUnderTest

LIVE_RESOURCES: Final = 12
"""Destinations with a license each, so that each revocation trial has one to revoke."""

BINDINGS_PER_FILE: Final = 10_000
FILLER_RESOURCES: Final = 100


def live_address(trial: int) -> str:
    """Destination of a revocation trial."""
    return f"127.0.255.{trial + 1}"


def live_license(trial: int) -> str:
    """The license to revoke in a trial."""
    return f"live-{trial}"


def _resource(name: str, networks: list[str], ports: str) -> str:
    rows = ", ".join(f'{{ cidr = "{network}", ports = [{ports}] }}' for network in networks)
    return (
        f'[[resource]]\nname = "{name}"\nkind = "network"\nmode = "enforce"\n'
        f"destinations = [{rows}]\n"
    )


def binding(license: str, selector: str) -> str:
    """A binding as policy files write it."""
    return f'[[binding]]\nlicense = "{license}"\nselectors = ["{selector}"]\n'


def client_selector(client: str) -> str:
    """How a policy names the measured client: by `uid`, by `cgroup`, or by `path`."""
    return {
        "uid": f"unix:uid:{CLIENT_UID}",
        "cgroup": "cgroup:path:/work",
        "path": f"unix:path:{BINARY}",
    }[client]


def load(agent: AgentUnderTest, *, bindings: int, networks: int, client: str = "uid") -> None:
    """Give `agent` the bench's own destinations, then as many others as asked for."""
    selector = client_selector(client)
    text = [_resource("bench", [f"{SERVER}/32"], f'"{PORT}", "{IPERF_PORT}"')]
    agent.issue("bench", ["bench"])
    text.append(binding("bench", selector))
    for trial in range(LIVE_RESOURCES):
        text.append(_resource(f"live-{trial}", [f"{live_address(trial)}/32"], f'"{PORT}"'))
        agent.issue(live_license(trial), [f"live-{trial}"])
        text.append(binding(live_license(trial), selector))
    agent.policy("".join(text), "00-bench")
    _filler(agent, bindings, networks)


def _filler(agent: AgentUnderTest, bindings: int, networks: int) -> None:
    """Networks around the measured destination and elsewhere; users that never run.

    Half of the networks are single addresses next to the destination, so that the way to it in
    the trie is as long as it gets; half are /24 of 10.0.0.0/8.
    """
    count = min(FILLER_RESOURCES, networks, bindings)
    near = int(ipaddress.IPv4Address("127.0.0.16"))
    cidrs = [
        f"{ipaddress.IPv4Address(near + i // 2)}/32"
        if i % 2
        else f"10.{i // 2 // 256}.{i // 2 % 256}.0/24"
        for i in range(networks)
    ]
    text = []
    for i in range(count):
        text.append(_resource(f"filler-{i}", cidrs[i::count], '"443", "5432"'))
        agent.issue(f"filler-{i}", [f"filler-{i}"])
    agent.policy("".join(text), "10-resources")
    lines = [
        binding(f"filler-{i % count}", f"unix:uid:{100_000 + i // count}") for i in range(bindings)
    ]
    for at in range(0, bindings, BINDINGS_PER_FILE):
        agent.policy("".join(lines[at : at + BINDINGS_PER_FILE]), f"20-bindings-{at:06}")
