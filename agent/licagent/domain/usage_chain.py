# SPDX-License-Identifier: Apache-2.0
"""The chain of usage records: its hash, what is signed, and what is sent. Pure.

Formats are those of licapi.control.v1 (`UsageBatch`, `UsageGap`); the control plane has the same
in licplane.service.usage_chain, and a test holds the two together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FIRST_HASH: Final = bytes(32)
"""The chain before sequence 1 of an epoch."""
BATCH_RECORDS_MAX: Final = 1_000
BATCH_BYTES_MAX: Final = 512 * 1024
"""Of the records in one batch; the control plane takes no longer ones than 1 MiB."""
RECORD_BYTES_MAX: Final = 16 * 1024
"""A longer record is set aside by the control plane."""

_BATCH: Final = b"licagent-usage-v1\0"
_GAP: Final = b"licagent-usage-gap-v1\0"


@dataclass(frozen=True, slots=True)
class UsageBatch:
    """Consecutive records, as they were committed and signed."""

    epoch: int
    boot_id: str
    """The boot in which they were committed."""
    first: int
    """Sequence of records[0]; 1 is the first of an epoch."""
    records: Sequence[bytes]
    previous_hash: bytes
    hash: bytes
    signature: bytes

    @property
    def last(self) -> int:
        """Sequence of the last record."""
        return self.first + len(self.records) - 1


@dataclass(frozen=True, slots=True)
class UsageGap:
    """Sequences that the host has lost."""

    epoch: int
    first: int
    last: int
    reason: str
    next_previous_hash: bytes
    """The chain after `last`, as the next intact frame has it."""
    signature: bytes


def chained(previous_hash: bytes, first: int, records: Sequence[bytes]) -> bytes:
    """The chain after `records`, of which the first has sequence `first`."""
    found = previous_hash
    sha256 = hashlib.sha256
    for sequence, record in enumerate(records, first):
        found = sha256(found + sequence.to_bytes(8, "big") + record).digest()
    return found


def batch_words(
    *, host_id: str, boot_id: str, epoch: int, first: int, last: int, chain_hash: bytes
) -> bytes:
    """What the signature of a batch is over. `host_id` is "" before the host was enrolled."""
    return b"".join(
        (
            _BATCH,
            host_id.encode() + b"\0",
            boot_id.encode() + b"\0",
            *(number.to_bytes(8, "big") for number in (epoch, first, last)),
            chain_hash,
        )
    )


def gap_words(
    *, host_id: str, epoch: int, first: int, last: int, next_previous_hash: bytes, reason: str
) -> bytes:
    """What the signature of a gap is over."""
    return b"".join(
        (
            _GAP,
            host_id.encode() + b"\0",
            *(number.to_bytes(8, "big") for number in (epoch, first, last)),
            next_previous_hash,
            reason.encode(),
        )
    )
