# SPDX-License-Identifier: Apache-2.0
"""The table of routes, and the decorators by which programs enter it."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tests.kernel.routes import addresses
from tests.kernel.routes.base import Context

Network = Literal["host", "fresh", "veth"]
"""host: the machine's own loopback. fresh: loopback of a new namespace with tuned sysctls.
veth: a namespace whose server is in a second one, across a veth pair."""

Direction = Literal["out", "in"]
"""out: the program sends to the recorder. in: the program offers a port, the harness calls it."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route: the program and what the tests must know of it."""

    name: str
    program: Callable[[Context], None]
    summary: str
    evidence: str
    """Which of the recorder's sockets must have got the token: "tcp4", "udp6", "icmp4", ..."""
    address: str
    """What the program is told to send to."""
    protocol: str
    """As a policy's destination names it: tcp, udp, icmp, other."""
    cidr: str
    """Where that really is: what a policy names."""
    network: Network = "host"
    direction: Direction = "out"
    needs: frozenset[str] = frozenset()
    """holder, other, child, outside: what the harness must have ready beside the server."""
    open_as: str = ""
    """Non-empty: no cgroup hook sees this route; the coverage table must name it so, and say
    whether something else closes it here."""
    proof: Mapping[str, object] = field(default_factory=dict)
    """Details a bare run must report, so that the route is known to be what it says."""
    rounds: int = 1
    """2: sends once more after wait("midway"), for tests that change something between."""


ROUTES: Final[dict[str, Route]] = {}
"""All routes by name, filled by `route` when a theme's module is imported."""


def route(
    evidence: str,
    *,
    address: str = "",
    cidr: str = "",
    name: str = "",
    protocol: str = "",
    network: Network = "host",
    direction: Direction = "out",
    needs: tuple[str, ...] = (),
    open_as: str = "",
    proof: Mapping[str, object] | None = None,
    rounds: int = 1,
) -> Callable[[Callable[[Context], None]], Callable[[Context], None]]:
    """Register a program under its own name. Address and protocol follow from the evidence."""
    six = evidence.endswith("6")
    if not address:
        if network == "veth":
            address = addresses.SERVER6 if six else addresses.SERVER4
        else:
            address = "::1" if six else "127.0.0.1"
    kind = evidence.rstrip("46")
    if not protocol:
        aliases = {"udplite": "udp", "mptcp": "tcp", "fragment": "udp"}
        protocol = aliases.get(kind, kind)

    def register(program: Callable[[Context], None]) -> Callable[[Context], None]:
        key = name or program.__name__
        assert key not in ROUTES, f"two routes are called {key}"
        ROUTES[key] = Route(
            name=key,
            program=program,
            summary=(program.__doc__ or "").strip().splitlines()[0],
            evidence=evidence,
            address=address,
            protocol=protocol,
            cidr=cidr or f"{address}/{128 if ':' in address else 32}",
            network=network,
            direction=direction,
            needs=frozenset(needs),
            open_as=open_as,
            proof=dict(proof or {}),
            rounds=rounds,
        )
        return program

    return register


def pair(
    kind: str, **facts: Any
) -> Callable[[Callable[[Context, int], None]], Callable[[Context, int], None]]:
    """Register a program twice, as NAME4 and NAME6; it is called with the address family."""

    def with_family(
        program: Callable[[Context, int], None], family: int
    ) -> Callable[[Context], None]:
        @functools.wraps(program)
        def bound(context: Context) -> None:
            program(context, family)

        return bound

    def register(program: Callable[[Context, int], None]) -> Callable[[Context, int], None]:
        for suffix, family in (("4", socket.AF_INET), ("6", socket.AF_INET6)):
            name = program.__name__ + suffix
            route(kind + suffix, name=name, **facts)(with_family(program, family))
        return program

    return register
