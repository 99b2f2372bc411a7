# SPDX-License-Identifier: Apache-2.0
"""The clock's memory: where it was anchored, and the latest time it has ever seen.

The rules are in `licagent.domain.clock`; this is where its numbers survive a reboot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from licagent.store.statedir import StateDir

_DOCUMENT: Final = "clock"
_SCHEMA: Final = "licagent.clock/1"


@dataclass(frozen=True, slots=True)
class ClockRecord:
    """What is kept of the trusted clock."""

    boot_id: str  # of the boot in which the anchor was taken
    anchor_wall_ns: int  # unix time, ns
    anchor_boottime_ns: int  # CLOCK_BOOTTIME at the same moment
    high_water_ns: int  # unix time, ns; trusted time is never below it


class ClockStore:
    """Reads and writes the clock's record."""

    def __init__(self, state: StateDir) -> None:
        """Nothing is read yet."""
        self._state = state
        self._last: ClockRecord | None = None

    def load(self) -> ClockRecord | None:
        """The record, or None on a new host. Raises DocumentDamaged."""
        body = self._state.read_document(_DOCUMENT, _SCHEMA)
        if body is None:
            return None
        self._last = ClockRecord(
            boot_id=str(body["boot_id"]),
            anchor_wall_ns=int(body["anchor_wall_ns"]),
            anchor_boottime_ns=int(body["anchor_boottime_ns"]),
            high_water_ns=int(body["high_water_ns"]),
        )
        return self._last

    def save(self, record: ClockRecord) -> None:
        """Make a record durable. The high-water mark never goes down.

        Raises StateWriteFailed; DocumentDamaged as `load` does, once.
        """
        if self._last is None:
            self.load()
        if self._last is not None and record.high_water_ns < self._last.high_water_ns:
            record = ClockRecord(
                record.boot_id,
                record.anchor_wall_ns,
                record.anchor_boottime_ns,
                self._last.high_water_ns,
            )
        self._state.write_document(
            _DOCUMENT,
            _SCHEMA,
            {
                "boot_id": record.boot_id,
                "anchor_wall_ns": record.anchor_wall_ns,
                "anchor_boottime_ns": record.anchor_boottime_ns,
                "high_water_ns": record.high_water_ns,
            },
        )
        self._last = record
