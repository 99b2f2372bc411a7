# SPDX-License-Identifier: Apache-2.0
"""What comes on a stream of usage, in the words of the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from licplane.errors import ExitCode, PlaneError
from licplane.service.usage.chain import FIRST_HASH
from licplane.store.usage_model import SetAside, UsageRow


class Position(NamedTuple):
    """A place in a chain: everything up to `sequence` is stored, and the chain's hash there."""

    sequence: int = 0
    hash: bytes = FIRST_HASH


@dataclass(frozen=True, slots=True)
class UsageHello:
    """See licapi.control.v1.UsageHello."""

    epoch: int
    public_key: bytes
    boot_id: str
    first_sequence: int
    next_sequence: int


@dataclass(frozen=True, slots=True)
class SentBatch:
    """See licapi.control.v1.UsageBatch."""

    epoch: int
    boot_id: str
    first: int
    records: Sequence[bytes]
    previous_hash: bytes
    hash: bytes
    signature: bytes

    @property
    def last(self) -> int:
        """Sequence of the last record."""
        return self.first + len(self.records) - 1


@dataclass(frozen=True, slots=True)
class SentGap:
    """See licapi.control.v1.UsageGap."""

    epoch: int
    first: int
    last: int
    reason: str
    next_previous_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class ReadRecords:
    """A batch's records, read: what is billed, and what is set aside."""

    rows: Sequence[UsageRow]
    refused: Sequence[SetAside]
    start_ms: int  # the earliest start and the latest end of the rows; 0: there are none
    end_ms: int


class UsageRefused(PlaneError):
    """A batch, gap or hello that is not taken. `code` names the alarm that was raised."""

    def __init__(self, alarm: str, message: str, hint: str) -> None:
        super().__init__(ExitCode.REFUSED, message, hint)
        self.alarm = alarm
