# SPDX-License-Identifier: Apache-2.0
"""Usage as the store keeps it: chains of records, their batches, and who and where they are of.

Times are unix milliseconds, UTC. Quantities are deltas in the meter's unit, never negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

DAY_MS: Final = 86_400_000

METERS: Final[tuple[tuple[str, int], ...]] = (
    ("cpu_ns", 20),
    ("read_bytes", 21),
    ("write_bytes", 22),
    ("cancelled_bytes", 23),
    ("memory_byte_ms", 24),
    ("processes", 25),
    ("tx_payload_bytes", 26),
    ("rx_payload_bytes", 27),
    ("tx_wire_bytes", 28),
    ("rx_wire_bytes", 29),
    ("tx_packets", 30),
    ("rx_packets", 31),
    ("stored_byte_ms", 32),
)
"""Each meter's name, which is its column, and its field in licapi.control.v1.UsageRecord."""

METER_FIRST: Final = 20
"""Bit n of the columns `estimated` and `unsupported` stands for the meter with field 20 + n."""


class UsageKind(IntEnum):
    """What a record is about; numbers as in licapi.control.v1.UsageKind."""

    COMPUTE = 1
    NETWORK = 2
    STORAGE = 3
    UNATTRIBUTED = 4
    GAP = 5


@dataclass(frozen=True, slots=True)
class Chain:
    """The records of one spool of one host: where the control plane is in it."""

    host_id: str
    epoch: int
    public_key: bytes  # Ed25519, 32 bytes; the first one seen for the epoch
    boot_id: str = ""  # the last one told
    acked_sequence: int = 0  # all up to here is stored, set aside or a named gap
    acked_hash: bytes = bytes(32)  # the chain there
    host_first_sequence: int = 0  # what the host said it still has, and gives next
    host_next_sequence: int = 0
    begun_ms: int = 0
    received_ms: int = 0


class Owner(NamedTuple):
    """Who used it (dimension `usage_owners`)."""

    unit: str = ""
    cgroup: str = ""
    user: str = ""
    uid: int = -1  # -1: nobody in particular
    executable: str = ""


class UsageScope(NamedTuple):
    """Where it was used: the host's labels when the records came (dimension `usage_scopes`)."""

    org: str = ""
    project: str = ""
    environment: str = ""
    region: str = ""


class UsageRow(NamedTuple):
    """One line that is billed. A tuple, because there are many of them."""

    sequence: int
    kind: int
    start_ms: int
    end_ms: int
    license: str
    resource: str
    binding: str
    owner: Owner
    pid: int
    process_start_ms: int
    protocol: int
    loopback: int
    estimated: int  # bit masks, see METER_FIRST
    unsupported: int
    detail: str
    payload_hash: bytes  # SHA-256 of the record as it came
    quantities: tuple[int, ...]  # in the order of METERS


@dataclass(frozen=True, slots=True)
class SetAside:
    """A record that could not be billed: stored as it came, with an alarm."""

    sequence: int
    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records as the host signed them, verified and read."""

    host_id: str
    epoch: int
    boot_id: str
    first_sequence: int
    last_sequence: int
    signed_host_id: str  # the host's id, or "" for what was committed before it enrolled
    previous_hash: bytes
    hash: bytes
    signature: bytes
    payload: bytes  # licplane.store.usage_payloads.pack of the records as they came
    start_ms: int
    end_ms: int
    rows: Sequence[UsageRow]
    refused: Sequence[SetAside] = ()


@dataclass(frozen=True, slots=True)
class LostRange:
    """Sequences that the host has lost, as it named and signed them."""

    host_id: str
    epoch: int
    first_sequence: int
    last_sequence: int
    signed_host_id: str
    reason: str
    next_previous_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class UsageAlarm:
    """Something about a chain that people must look at. One row for each code of a chain."""

    host_id: str
    epoch: int
    code: str
    sequence: int  # of the last occurrence
    detail: str
    first_ms: int
    last_ms: int
    count: int = 1
