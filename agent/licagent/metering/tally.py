# SPDX-License-Identifier: Apache-2.0
"""Usage records added up by one thing: a license, a process, a unit, ...

The sums are exact: records are deltas, each counts once. A record counts as a whole if its
interval overlaps the window asked for; it is not cut, for nobody knows when in it what was used.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from licagent.domain.usage import Meter, UsageKind, UsageRecord

_DETAILS_MAX: Final = 20

SHARED: Final = ("license", "resource", "unit", "user", "executable")
"""What a row has one value of, or several."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for. None: whatever it is."""

    by: str = "license"
    since_unix_ms: int | None = None
    until_unix_ms: int | None = None
    license: str | None = None
    resource: str | None = None
    unit: str | None = None
    user: str | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether only some owners are asked for."""
        return any(each is not None for each in (self.license, self.resource, self.unit, self.user))

    def overlaps(self, start_unix_ms: int, end_unix_ms: int) -> bool:
        """Whether a record of this interval is of the window."""
        since, until = self.since_unix_ms, self.until_unix_ms
        if until is not None and start_unix_ms >= until:
            return False
        # The instant at which one interval ends and the next begins belongs to the next.
        return since is None or end_unix_ms > since

    def matches(self, record: UsageRecord) -> bool:
        """Whether a record is of the owners asked for."""
        return (
            (self.license is None or record.license == self.license)
            and (self.resource is None or record.resource == self.resource)
            and (self.unit is None or record.owner.unit == self.unit)
            and (self.user is None or record.owner.user == self.user)
        )


@dataclass(slots=True)
class Row:
    """What one license, process, unit, ... used."""

    quantities: dict[Meter, int] = field(default_factory=dict)
    values: dict[str, str | None] = field(default_factory=dict)
    """Of SHARED: the one value that all its records have; None: several."""
    pid: int = 0
    process_start_unix_ms: int = 0
    estimated: set[Meter] = field(default_factory=set)
    unsupported: set[Meter] = field(default_factory=set)


class Tally:
    """Adds up. `rows` by the key that `Wanted.by` says."""

    def __init__(self, wanted: Wanted, *, rows_kept: int = 4000) -> None:
        """Of more rows than `rows_kept` and half as many again, the smallest are folded into one.

        So that a ledger with a million processes does not cost a gigabyte. Rows and sums stay
        exact; what is used later under a name that was folded is in `folded`, too.
        """
        self._wanted = wanted
        self._rows_kept = rows_kept
        self._folded_keys: set[int] = set()
        self.folded: dict[Meter, int] = {}
        """What the folded rows used, together."""
        self.folded_rows = 0
        self.rows: dict[tuple[str | int, ...], Row] = {}
        self.unattributed: dict[Meter, int] = {}
        self.details: list[str] = []
        self.records = 0
        self.start_unix_ms: int | None = None
        self.end_unix_ms: int | None = None

    def add(self, record: UsageRecord) -> None:
        """Count a record, if it was asked for."""
        wanted = self._wanted
        if not wanted.overlaps(record.start_unix_ms, record.end_unix_ms):
            return
        if record.kind in (UsageKind.UNATTRIBUTED, UsageKind.GAP):
            if not wanted.is_filtered:
                self._note(record)
                self._detail(record)
                add_to(self.unattributed, record.quantities)
            return
        if not wanted.matches(record):
            return
        self._note(record)
        row = self._row(record)
        if row is None:
            add_to(self.folded, record.quantities)
            return
        add_to(row.quantities, record.quantities)
        row.estimated |= record.estimated
        row.unsupported |= record.unsupported

    def _note(self, record: UsageRecord) -> None:
        self.records += 1
        if self.start_unix_ms is None or record.start_unix_ms < self.start_unix_ms:
            self.start_unix_ms = record.start_unix_ms
        if self.end_unix_ms is None or record.end_unix_ms > self.end_unix_ms:
            self.end_unix_ms = record.end_unix_ms

    def _detail(self, record: UsageRecord) -> None:
        if (
            record.detail
            and record.detail not in self.details
            and len(self.details) < _DETAILS_MAX
            and (record.quantities or record.kind is UsageKind.GAP)
        ):
            self.details.append(record.detail)

    def _row(self, record: UsageRecord) -> Row | None:
        """None: it was folded."""
        owner = record.owner
        found = {
            "license": record.license,
            "resource": record.resource,
            "unit": owner.unit,
            "user": owner.user,
            "executable": owner.executable,
        }
        by = self._wanted.by
        key: tuple[str | int, ...]
        key = (owner.pid, owner.process_start_unix_ms) if by == "process" else (found[by],)
        row = self.rows.get(key)
        if row is None:
            if self._folded_keys and hash(key) in self._folded_keys:
                return None
            if len(self.rows) >= self._rows_kept + self._rows_kept // 2:
                self._fold()
            row = self.rows[key] = Row(values=dict(found))
            if by == "process":
                row.pid, row.process_start_unix_ms = owner.pid, owner.process_start_unix_ms
            return row
        for name, value in found.items():
            if row.values[name] != value:
                row.values[name] = None
        return row

    def _fold(self) -> None:
        over = len(self.rows) - self._rows_kept
        for key in heapq.nlargest(over, self.rows, key=lambda key: rank(self.rows[key])):
            add_to(self.folded, self.rows.pop(key).quantities)
            self.folded_rows += 1
            self._folded_keys.add(hash(key))


def rank(row: Row) -> tuple[int, ...]:
    """For sorting: the largest first."""
    used = row.quantities
    wires = used.get(Meter.TX_PAYLOAD_BYTES, 0) + used.get(Meter.RX_PAYLOAD_BYTES, 0)
    return (-used.get(Meter.CPU_NS, 0), -wires, -used.get(Meter.STORED_BYTE_MS, 0))


def add_to(sums: dict[Meter, int], amounts: Mapping[Meter, int]) -> None:
    """Add quantities, meter by meter."""
    for meter, amount in amounts.items():
        sums[meter] = sums.get(meter, 0) + amount
