# SPDX-License-Identifier: Apache-2.0
"""The built-in failsafe list: what no policy can take from a host."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from licagent.domain.compiler import FailsafeEntry
from licagent.domain.config import AgentConfig
from licagent.domain.failsafe import failsafe_entries
from licagent.domain.ports import PortRange
from licagent.domain.tables import Protocol


def resolvers(path: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """Name servers of resolv.conf(5); a damaged line is passed over."""
    found = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(str(ipaddress.ip_address(words[1].partition("%")[0])))
            except ValueError:
                continue
    return tuple(dict.fromkeys(found))


def failsafe_of(config: AgentConfig) -> tuple[FailsafeEntry, ...]:
    """The list of agent.toml, or the built-in one.

    DHCP and NTP to anywhere, DNS to the configured resolvers only (a resolver port open to
    every address would be a way round), and inbound SSH. Loopback needs no entry: what no
    resource names passes.
    """
    if config.failsafe is not None:
        return failsafe_entries(config.failsafe)
    entries = [
        FailsafeEntry("out", None, Protocol.UDP, PortRange(67, 68)),
        FailsafeEntry("out", None, Protocol.UDP, PortRange(546, 547)),
        FailsafeEntry("out", None, Protocol.UDP, 123),
        FailsafeEntry("in", None, Protocol.TCP, 22),
        FailsafeEntry("in", None, Protocol.UDP, PortRange(67, 68)),
        FailsafeEntry("in", None, Protocol.UDP, PortRange(546, 547)),
    ]
    for server in resolvers():
        for protocol in (Protocol.UDP, Protocol.TCP):
            entries.append(FailsafeEntry("out", server, protocol, 53))
    return tuple(entries)
