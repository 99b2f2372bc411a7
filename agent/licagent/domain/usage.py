# SPDX-License-Identifier: Apache-2.0
"""What was used: owners, quantities and records. Pure; how it is measured stands elsewhere.

A *record* is one line of a bill's evidence: one owner, one license (or none), one resource, one
interval, and the quantities measured. Quantities are whole numbers in the meter's unit, and
deltas: summing records gives the total, nothing has to be subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Meter(IntEnum):
    """What is measured. The number is the field of `licapi.control.v1.UsageRecord`."""

    # Enum's own hash is a call in Python, and a sheet of 10,000 rows asks for it 200,000 times.
    __hash__ = int.__hash__

    CPU_NS = 20
    """Time on a CPU, nanoseconds, from the scheduler (sum_exec_runtime)."""
    READ_BYTES = 21
    """Read from storage on behalf of the task (task_io_accounting.read_bytes)."""
    WRITE_BYTES = 22
    """Caused to be written to storage, counted when a page is dirtied."""
    CANCELLED_BYTES = 23
    """Written bytes that were cancelled by truncating before they reached storage."""
    MEMORY_BYTE_MS = 24
    """Resident memory over time: bytes times milliseconds."""
    PROCESSES = 25
    """Processes that ended."""
    TX_PAYLOAD_BYTES = 26
    """Sent: TCP bytes the peer acknowledged, UDP and others the datagrams' payload."""
    RX_PAYLOAD_BYTES = 27
    """Received: TCP bytes in order, UDP and others the datagrams' payload."""
    TX_WIRE_BYTES = 28
    """IP packets sent, headers and repetitions included, each segment with its own headers."""
    RX_WIRE_BYTES = 29
    TX_PACKETS = 30
    RX_PACKETS = 31
    STORED_BYTE_MS = 32
    """Storage footprint over time: bytes times milliseconds."""

    @property
    def key(self) -> str:
        """Its name in JSON, columns and price plans: `cpu_ns`."""
        return self.name.lower()


class Quality(StrEnum):
    """How far a quantity may be trusted."""

    EXACT = "exact"
    ESTIMATED = "estimated"
    UNSUPPORTED = "unsupported"


class UsageKind(IntEnum):
    """What a record is about; the number is on the wire."""

    COMPUTE = 1
    """CPU, memory and storage input and output of processes."""
    NETWORK = 2
    STORAGE = 3
    """Footprint of a path, a user or a project."""
    UNATTRIBUTED = 4
    """What the host's own totals have and no process could be given."""
    GAP = 5
    """What was lost, and is known to be lost: `detail` says what and why."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class UsageOwner:
    """Who used it."""

    unit: str = ""
    """Its systemd unit or container, as selectors name them; else its cgroup's path."""
    cgroup: str = ""
    user: str = ""
    uid: int = -1
    """-1: nobody in particular."""
    executable: str = ""
    """Path of the executable; "[name]" for a kernel thread, "" where it is not known."""
    pid: int = 0
    """0: several processes, which lived and died between two samples."""
    process_start_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One line."""

    kind: UsageKind
    start_unix_ms: int
    end_unix_ms: int
    quantities: Mapping[Meter, int]
    """Never negative; a meter that is absent was zero or does not belong to the kind."""
    owner: UsageOwner = field(default_factory=UsageOwner)
    license: str = ""
    """The license's jti; "" for use of no resource and for shadow usage."""
    resource: str = ""
    binding: str = ""
    """The binding by which the license applies: why it was allocated."""
    protocol: int = 0
    """IP protocol number of NETWORK: 6, 17, 1, 132, or 255 for others."""
    is_loopback: bool = False
    estimated: frozenset[Meter] = frozenset()
    unsupported: frozenset[Meter] = frozenset()
    detail: str = ""
    """For people: what could not be attributed or was lost."""
