# SPDX-License-Identifier: Apache-2.0
"""A licensed and an unlicensed process side by side, where every address can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.dial import Dialer, binding
from tests.kernel.harness.namespaces import Netns
from tests.kernel.harness.subjects import NO_LICENSE, new_jti

OPEN: Final = frozenset({"OK", "ECONNREFUSED"})
"""What an allowed use of a port without a server says."""


def everywhere() -> Netns:
    """A namespace in which every address is one of its own, and every user may do everything."""
    made = Netns.new()
    made.ip("route", "add", "local", "0.0.0.0/0", "dev", "lo")
    made.ip("-6", "route", "add", "local", "::/0", "dev", "lo")
    made.sysctl("ipv4/ping_group_range", "0 2147483647")
    made.sysctl("ipv4/ip_unprivileged_port_start", "0")
    return made


@dataclass(slots=True)
class Sides:
    """A process that the binding names and one that it does not, in one namespace."""

    agent: AgentUnderTest
    licensed: Dialer
    unlicensed: Dialer
    selector: str
    """Of the licensed one."""
    yes: Path
    no: Path
    """Their cgroups."""

    def enforce(self, *resources: str, names: tuple[str, ...] = ("r",), **fields: Any) -> str:
        """Put resources in force, and license all of `names` to the licensed process."""
        jti = new_jti()
        self.agent.issue(jti, list(names), **fields)
        self.agent.policy("\n".join(resources) + binding(jti, self.selector))
        return jti

    def only_licensed(self, what: str, address: str, port: int) -> None:
        """A use that is a resource's."""
        command = f"use {what} {address} {port}"
        assert self.licensed.ask(command) in OPEN, command
        assert self.unlicensed.ask(command) == NO_LICENSE, command

    def anybody(self, what: str, address: str, port: int) -> None:
        """A use that is no resource's."""
        command = f"use {what} {address} {port}"
        assert self.unlicensed.ask(command) in OPEN, command
        assert self.licensed.ask(command) in OPEN, command


def network(*destinations: str, name: str = "r", mode: str = "enforce") -> str:
    """A [[resource]] of destinations."""
    places = ", ".join(destinations)
    return (
        f'[[resource]]\nname = "{name}"\nkind = "network"\nmode = "{mode}"\n'
        f"destinations = [{places}]\n"
    )


def service(ports: str, protocol: str = "any", name: str = "r", mode: str = "enforce") -> str:
    """A [[resource]] of ports of this host."""
    return (
        f'[[resource]]\nname = "{name}"\nkind = "service"\nmode = "{mode}"\n'
        f'ports = [{ports}]\nprotocol = "{protocol}"\n'
    )
