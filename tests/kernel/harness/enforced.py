# SPDX-License-Identifier: Apache-2.0
"""Walking a route while an agent enforces a policy that names where it goes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.walk import Surroundings, Target, Walk, World, walk
from tests.kernel.routes.catalogue import ROUTES
from tests.kernel.routes.registry import Route

RESOURCES: Final = ("route", "elsewhere")
"""What every license of these tests entitles to."""

ELSEWHERE: Final = "192.0.2.77/32"
NOBODYS_PORT: Final = 19

_NUMBERS: Final = itertools.count(1)


def new_jti() -> str:
    """The id of a license that no test had before."""
    return f"routes-{os.getpid()}-{next(_NUMBERS)}"


@dataclass(frozen=True, slots=True)
class Bench:
    """The agent, and the cgroups of both subjects."""

    agent: Any
    licensed: Path
    unlicensed: Path
    outside: Path

    def surroundings(self, subject: Path) -> Surroundings:
        """Helpers are always licensed; "other" is the other side."""
        other = self.unlicensed if subject == self.licensed else self.licensed
        return Surroundings(holder=self.licensed, other=other, outside=self.outside)

    def enforce(
        self, route: Route, target: Target, selectors: tuple[str, ...] = ("cgroup:path:/licensed",)
    ) -> str:
        """Issue a license for the route's destination and put it in force; answers its jti."""
        jti = new_jti()
        self.agent.issue(jti, resources=list(RESOURCES), expires_in_s=3600)
        self.agent.policy(policy_text(route, target, jti, selectors))
        return jti

    def is_open(self, key: str) -> bool:
        """Whether the coverage table says that this kernel leaves a route open."""
        rows = [row for row in self.agent.coverage() if key.lower() in str(row["route"]).lower()]
        assert rows, f"the coverage table does not mention {key}"
        still_open = [row for row in rows if row["state"] == "open"]
        for row in still_open:
            assert row["kernel_needed"], f"which kernel closes {key} is not said: {row}"
        return bool(still_open)


def policy_text(route: Route, target: Target, jti: str, selectors: tuple[str, ...]) -> str:
    """A policy that names what the route goes to, and a resource of the other kind elsewhere.

    The second one puts every hook to work: without it, a policy of services alone leaves no tags
    on clients, and the reverse.
    """
    if route.direction == "in":
        what = f'kind = "service"\nports = ["{target.ports}"]\nprotocol = "{route.protocol}"'
        elsewhere = f'kind = "network"\ndestinations = [{{ cidr = "{ELSEWHERE}" }}]'
    else:
        has_ports = route.protocol in {"tcp", "udp", "sctp"}
        ports = f', ports = ["{target.ports}"]' if has_ports else ""
        where = f'{{ cidr = "{route.cidr}", protocol = "{route.protocol}"{ports} }}'
        what = f'kind = "network"\ndestinations = [{where}]'
        elsewhere = f'kind = "service"\nports = ["{NOBODYS_PORT}"]\nprotocol = "tcp"'
    chosen = ", ".join(f'"{selector}"' for selector in selectors)
    return (
        f'[[resource]]\nname = "route"\nmode = "enforce"\n{what}\n\n'
        f'[[resource]]\nname = "elsewhere"\nmode = "enforce"\n{elsewhere}\n\n'
        f'[[binding]]\nlicense = "{jti}"\nselectors = [{chosen}]\n'
    )


def go(
    bench: Bench,
    world: World,
    name: str,
    subject: Path,
    *,
    selectors: tuple[str, ...] = ("cgroup:path:/licensed",),
    midway: Callable[[str], None] = lambda _jti: None,
    **facts: Any,
) -> Walk:
    """Put the policy of a route in force and walk it; skips what this kernel does not have."""
    route = ROUTES[name]
    target = world.target(route)
    issued: list[str] = []
    on: dict[str, Callable[[], None]] = {"midway": lambda: midway(issued[0])}
    if "serve_before" in name:  # the port is bound while no policy names it
        bench.agent.policy("")
        on["bound"] = lambda: issued.append(bench.enforce(route, target, selectors))
    else:
        issued.append(bench.enforce(route, target, selectors))
    result = walk(route, world, subject, bench.surroundings(subject), target, on=on, **facts)
    if result.outcome == "unsupported":
        pytest.skip(f"not on this kernel: {result.stage}: {result.message} ({result.errno})")
    return result
