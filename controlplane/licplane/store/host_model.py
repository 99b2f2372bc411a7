# SPDX-License-Identifier: Apache-2.0
"""Hosts, as values: what was decided about them, what they told, and the use they reported.

Times are unix milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from licplane.store.catalog_model import View

NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class HostStatus(IntEnum):
    """Numbers as licapi.control.v1.HostStatus has them."""

    ACTIVE = 1
    EVICTED = 2
    BANNED = 3
    CLONED = 4
    DRAINING = 5
    LEAVING = 6

    @property
    def word(self) -> str:
        """As people write it: `active`, `evicted`..."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Host:
    """An enrolled host: what administrators decided about it, and what it said of itself."""

    host_id: str  # UUID, lower case
    hostname: str
    status: HostStatus
    labels: Mapping[str, str]
    machine_id: str  # 32 hex digits, or empty
    key_fingerprint: bytes  # SHA-256 of the SubjectPublicKeyInfo of its key
    assignment_sequence: int  # grows with every change of labels or status; starts at 1
    enrolled_at_unix_ms: int
    join_token: str = ""  # id of the token it came with; empty: admitted from a file
    agent_version: str = ""
    kernel_release: str = ""
    fleet_revision: int = 0  # Head.fleet_revision of its last change; set by the store

    @property
    def view(self) -> View:
        """The part of the catalog that this host sees."""
        return View.of(self.labels)


@dataclass(frozen=True, slots=True)
class HostPresence:
    """What the streams of a host last told; written often, by any replica."""

    host_id: str
    last_seen_unix_ms: int
    connected_until_unix_ms: int = 0  # later than now: a stream is open; the replica extends it
    replica: str = ""
    acked_revision: int = 0
    last_nack: str = ""


@dataclass(frozen=True, slots=True)
class HostCounters:
    """The rotating counter of a host: the one confirmed, and the one given and not yet kept."""

    host_id: str
    current: bytes
    pending: bytes = b""


@dataclass(frozen=True, slots=True)
class HostReport:
    """The last report of a host, as it came (licapi.control.v1.HostReport, serialized)."""

    host_id: str
    at_unix_ms: int  # when it came, by our clock
    report: bytes


@dataclass(frozen=True, slots=True)
class ShadowRow:
    """Use of a resource without a binding, on one host since one boot of its agent."""

    host_id: str
    boot_id: str
    resource: str
    selector: str
    executable: str
    user: str
    count: int  # total since that boot
    first_unix_ms: int
    last_unix_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FleetShadow:
    """Shadow usage summed over hosts and boots."""

    resource: str
    selector: str
    executable: str
    user: str
    hosts: int
    count: int
    first_unix_ms: int
    last_unix_ms: int
