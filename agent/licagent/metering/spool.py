# SPDX-License-Identifier: Apache-2.0
"""The ledger, as metering needs it: who takes a frame or refuses it, and the marks in it."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from licagent.domain.usage import UsageRecord
from licagent.metering.rows import Sheet

SHEET_MARK: Final = "sheet"
BALANCE_MARK: Final = "host"
FOOTPRINT_MARK: Final = "footprint"
FALLBACK_MARK: Final = "fallback"
OFF_MARK: Final = "off"
"""Stands in the newest frame while nothing is metered because nobody wants it."""


class Refusal(StrEnum):
    """Why a frame was not taken."""

    FULL = "full"
    BLOCKED = "blocked"


class Spool(Protocol):
    """The ledger, as this needs it. What it raises is the adapter's business."""

    @property
    def marks(self) -> Mapping[str, bytes]:
        """Those of the newest frame."""
        ...  # pragma: no cover

    def settle(self) -> bool:
        """Whether the newest frame is known to be on the disk."""
        ...  # pragma: no cover

    def commit(
        self, records: Collection[UsageRecord], marks: Mapping[str, bytes]
    ) -> Refusal | None:
        """Take all of it durably, or say why nothing was taken."""
        ...  # pragma: no cover


@dataclass(frozen=True, slots=True)
class SheetMark:
    """Which sheet a frame stands for. A number alone may come again when the meter is new."""

    boot_id: str = ""
    number: int = 0
    opened_ns: int = 0
    closed_ns: int = 0
    end_unix_ms: int = 0

    @classmethod
    def from_bytes(cls, data: bytes) -> SheetMark:
        """From a mark of the ledger; one that cannot be read is of no sheet."""
        if len(data) != _MARK.size:
            return cls()
        boot, *numbers = _MARK.unpack(data)
        return cls(str(uuid.UUID(bytes=boot)), *numbers)

    def to_bytes(self) -> bytes:
        """For a mark of the ledger: 48 bytes, so that it outlives a damaged frame."""
        boot = uuid.UUID(self.boot_id).bytes
        return _MARK.pack(
            boot, self.number, self.opened_ns, self.closed_ns, max(0, self.end_unix_ms)
        )

    def is_of(self, sheet: Sheet, boot_id: str) -> bool:
        """Whether this very sheet was committed."""
        return (
            self.boot_id == boot_id
            and self.number == sheet.number
            and self.opened_ns == sheet.opened_ns
        )


_MARK: Final = struct.Struct(">16sQQQQ")
