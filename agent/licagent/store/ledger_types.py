# SPDX-License-Identifier: Apache-2.0
"""What the ledger of usage takes and gives: limits, batches, gaps, errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from licagent.store.errors import StoreError

BATCH_RECORDS: Final = 1000
"""Records in one signed batch, at most."""
BATCH_BYTES: Final = 512 * 1024
"""Bytes of records in one signed batch, at most, unless a single record is longer."""
PAYLOAD_MAX_BYTES: Final = 1024 * 1024
"""A longer record is refused (ValueError): it is a mistake of the caller."""
FRAME_RECORDS: Final = 1 << 20
"""Records in one commit, at most."""
HASH_BYTES: Final = 32
NO_HASH: Final = bytes(HASH_BYTES)
"""The chain before the first record of an epoch."""


class LedgerFull(StoreError):
    """The spool's bound is reached: nothing was written. Keep the usage and merge it."""


class LedgerBlocked(StoreError):
    """The disk refuses: nothing was taken. Keep the usage and try again."""


class LedgerBusy(StoreError):
    """Another process has this ledger."""


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    """How much is kept."""

    spool_max_bytes: int = 512 * 1024 * 1024
    """Of all segment files together, acknowledged ones included."""
    segment_bytes: int = 4 * 1024 * 1024
    """A segment that is longer is followed by a new one."""
    keep_acknowledged_ms: int = 7 * 24 * 3600 * 1000
    keep_acknowledged_bytes: int = 64 * 1024 * 1024
    """Acknowledged segments stay for local reports while they are younger than the one and
    smaller together than the other; they yield to new usage before the spool counts as full."""
    when_full: Literal["hold", "drop_oldest"] = "hold"
    """What happens at `spool_max_bytes` with nothing acknowledged: "hold" raises LedgerFull;
    "drop_oldest", for a host that has no control plane, drops the oldest segment and names its
    sequences as a gap."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The sequences that a commit gave; `last` is `first` - 1 when it had no records."""

    epoch: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records as they were committed and signed; see UsageBatch in the protocol."""

    epoch: int
    boot_id: str
    host_id: str
    """In the signature: "" for what was committed before the host had enrolled."""
    first: int
    records: tuple[bytes, ...]
    previous_hash: bytes
    hash: bytes
    signature: bytes

    @property
    def last(self) -> int:
        """Sequence of the last record."""
        return self.first + len(self.records) - 1


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequences that are lost, by name; see UsageGap in the protocol."""

    epoch: int
    first: int
    last: int
    reason: str
    next_previous_hash: bytes
    """The chain after `last`."""
    signature: bytes = b""
    """Empty where the epoch's key is lost too."""


@dataclass(frozen=True, slots=True)
class EpochState:
    """One chain of records, as far as it is still held and not wholly acknowledged."""

    epoch: int
    public_key: bytes
    """Ed25519, 32 bytes."""
    boot_id: str
    """Of its newest frame."""
    first_sequence: int
    """The oldest that is still held."""
    next_sequence: int
    acked_sequence: int
    """0: none yet."""
    acked_hash: bytes
    is_current: bool
    """Commits go here; the others get no more records."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a check of every frame found."""

    segments: int
    frames: int
    batches: int
    records: int
    first_sequence: int
    """Of the oldest epoch that is there; 0: nothing is."""
    last_sequence: int
    """Of the newest epoch."""
    epochs: tuple[int, ...]
    gaps: tuple[Gap, ...]
    problems: tuple[str, ...]
    """For people: altered, damaged or missing things, each with its place."""

    @property
    def is_intact(self) -> bool:
        """Whether nothing was found."""
        return not self.gaps and not self.problems
