# SPDX-License-Identifier: Apache-2.0
"""What a host tells its control plane, as plain values (licapi.control.v1.HostReport)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HookState:
    """One attached program."""

    hook: str
    is_attached: bool
    link_id: int = 0  # of the kernel; 0 where there is none
    program_id: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MapDigest:
    """A kernel table, as it should be and as it is: SHA-256 over the entries."""

    map: str
    wanted: bytes
    found: bytes


@dataclass(frozen=True, slots=True)
class DecisionCount:
    """Decisions since the agent's boot."""

    license: str
    resource: str
    verdict: str  # allow, deny, shadow or cut
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class ShadowUsage:
    """Use of a resource with no binding."""

    resource: str
    selector: str
    executable: str
    user: str
    count: int
    first_unix_ms: int
    last_unix_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class LiveUse:
    """Open sockets of one workload under one license."""

    license: str
    resource: str
    selector: str
    sockets: int


@dataclass(frozen=True, slots=True)
class HostState:
    """How a host is."""

    mode: str  # observe or enforce
    agent_version: str
    boot_id: str
    hostname: str
    kernel_release: str
    revision: int  # of the catalog in the kernel's tables
    generation: int  # of the policy that holds it
    hooks: tuple[HookState, ...] = ()
    maps: tuple[MapDigest, ...] = ()
    posture: Mapping[str, str] = field(default_factory=dict)  # fact -> value; "" where unknown
    degraded: tuple[str, ...] = ()
    break_glass_until_unix_ms: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    refused_licenses: Mapping[str, str] = field(default_factory=dict)  # license -> reason
    authorities: tuple[str, ...] = ()  # roots of the control plane: SHA-256, hexadecimal


@dataclass(frozen=True, slots=True)
class HostReport:
    """One report. Totals, so that a lost or repeated report changes nothing."""

    at_unix_ms: int
    state: HostState
    decisions: tuple[DecisionCount, ...] = ()
    shadow: tuple[ShadowUsage, ...] = ()
    live: tuple[LiveUse, ...] = ()
