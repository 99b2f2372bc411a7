# SPDX-License-Identifier: Apache-2.0
"""What a license says, as plain values. Standard library only.

The JSON form and its checks are in `lictoken.payload`; these classes hold values that have
passed those checks. docs/reference/license-token.md describes each field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FORMAT_VERSION: Final = 1
"""`lic.ver` of the licenses that this code reads and writes."""

AUDIENCE: Final = "licagent"
"""`aud` of everything that is signed for the agent."""

U32_MAX: Final = 2**32 - 1
"""Bound of license numbers and generations (32 bits in the kernel's tables)."""

I64_MAX: Final = 2**63 - 1
"""Bound of every other integer."""

TIME_MAX_S: Final = I64_MAX // 10**9
"""Latest time a license may name (year 2262): as nanoseconds it still fits in 64 bits."""

ACTIONS: Final = ("connect", "bind", "use")
"""What an entitlement may allow: reach a network, offer a service, use anything else."""

WINDOWS: Final = (
    "instant",
    "second",
    "minute",
    "hour",
    "day",
    "week",
    "month",
    "year",
    "total",
)
"""Per which time a limit counts: `instant` is a level (seats), `total` the license's life."""

EXHAUSTIONS: Final = ("deny", "throttle", "report")
"""What happens at the limit."""

FAILURE_MODES: Final = ("closed", "open")
"""What holds when the license cannot be judged (lease lost, meter unreadable)."""

SELECTOR_KINDS: Final = (
    "unix:uid",
    "unix:user",
    "unix:gid",
    "unix:group",
    "unix:path",
    "unix:sha256",
    "systemd:unit",
    "systemd:slice",
    "cgroup:path",
    "container:id",
    "host",
)
"""Selectors an issuer may put into a license; the agent's own parser judges their values."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of a meter an entitlement grants."""

    meter: str  # name with its unit: egress_bytes, cpu_ns, seats, connections
    limit: int  # 0..I64_MAX, in the meter's unit
    window: str = "total"  # one of WINDOWS
    on_exhaustion: str = "deny"  # one of EXHAUSTIONS


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that must hold for the entitlement to count: any of `values` satisfies it."""

    kind: str  # region, posture, role, hours... ; the agent refuses kinds it cannot judge
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entitlement:
    """One right: a resource, what may be done with it, its limits and conditions."""

    resource: str
    actions: tuple[str, ...] = ("connect",)  # of ACTIONS, never empty
    limits: tuple[Limit, ...] = ()
    conditions: tuple[Condition, ...] = ()  # all must hold; sorted by kind


@dataclass(frozen=True, slots=True)
class LicenseScope:
    """Where a license counts. Empty tuples and None mean everywhere."""

    org: str
    project: str | None = None
    environments: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class License:
    """A signed grant of rights to a licensee, for a time and a scope.

    Times are whole seconds since 1970-01-01T00:00:00Z, 0..TIME_MAX_S. The license holds in
    not_before_s <= now < expires_at_s.
    """

    jti: str  # the license's id, stable over renewals
    issuer: str
    subject: str  # the licensee
    audience: str
    number: int  # 1..U32_MAX, unique in the fleet, never reused; same over renewals
    generation: int  # 1..U32_MAX, rises with every issue of the same jti
    issued_at_s: int
    not_before_s: int
    expires_at_s: int
    scope: LicenseScope
    entitlements: tuple[Entitlement, ...]  # never empty; each resource once
    selectors: tuple[str, ...] = ()  # all must hold, beside those of each binding
    hosts: tuple[str, ...] = ()  # names, with * and ?, or machine-id:... ; empty: every host
    grace_s: int = 0  # 0..U32_MAX, seconds after a lost lease
    failure_mode: str = "closed"  # one of FAILURE_MODES
    kid: str = ""  # thumbprint of the key that signed it
