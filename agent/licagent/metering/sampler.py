# SPDX-License-Identifier: Apache-2.0
"""From sheets to the ledger: each sheet is committed once, whatever ends the daemon in between.

    close a sheet -> records -> one frame with the sheet's mark -> discard the sheet

Killed before the frame is on the disk, the next daemon finds the closed sheet in the kernel and a
mark of an earlier one: it commits it. Killed after, it finds the mark of that very sheet: it
discards it. While the ledger takes nothing the closed sheet stays where it is, and everything
goes on adding up in the open one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from licagent.domain.usage import Meter, Quality, UsageKind, UsageRecord
from licagent.domain.usage_lines import SheetLines
from licagent.domain.usage_merge import merge
from licagent.metering.footprint import FootprintRow
from licagent.metering.owners import Charging, HostNames, OwnedWork, OwnerBook
from licagent.metering.records import Qualities, SheetRecords, footprint_records, read_sheet
from licagent.metering.rows import Meter as SheetMeter
from licagent.metering.rows import Sheet
from licagent.metering.spool import (
    BALANCE_MARK,
    FALLBACK_MARK,
    FOOTPRINT_MARK,
    OFF_MARK,
    SHEET_MARK,
    Refusal,
    SheetMark,
    Spool,
)
from licagent.metering.unattributed import Balance, HostTotals, settle

_RESTARTED: Final = "the host was restarted: what was used since the last commit is not known"
_NOT_LOADED: Final = (
    "the programs were not loaded: what was used since the last commit is not known"
)


class FootprintSource(Protocol):
    """Storage footprints (`metering.footprint.Footprints`)."""

    def take(self) -> tuple[Sequence[FootprintRow], bytes]:
        """What was held since the last commit, and the baseline that goes with it."""
        ...  # pragma: no cover

    def committed(self) -> None:
        """What `take` gave last is on the disk."""
        ...  # pragma: no cover


@dataclass(frozen=True, slots=True)
class Step:
    """What one turn did."""

    sheet: Sheet | None = None
    """That was committed; None where the ledger did not take it."""
    records: Collection[UsageRecord] = ()
    work: OwnedWork | None = None
    """Of `sheet`, for whoever counts it too."""
    is_late: bool = False
    """It was closed earlier, by a daemon that has ended or while the ledger took nothing."""
    refusal: Refusal | None = None
    merged: bool = False
    """The spool had room only for fewer, coarser records."""
    quantities: Mapping[Meter, int] | None = None
    """What somebody was given, by meter."""
    unattributed: Mapping[Meter, int] | None = None


class Sampler:
    """Turns sheets into records and hands them to the ledger. Not for several threads at once."""

    def __init__(
        self,
        meter: SheetMeter,
        spool: Spool,
        names: HostNames,
        *,
        boot_id: str,
        unix_ms: Callable[[int], int],
        now_ns: Callable[[], int],
        totals: Callable[[], HostTotals],
        qualities: Qualities,
        footprints: FootprintSource | None = None,
        more_marks: Mapping[str, bytes] | None = None,
    ) -> None:
        """`unix_ms`: wall time of a reading of CLOCK_BOOTTIME; `now_ns`: such a reading.

        `more_marks` stand in each frame beside the sampler's own.
        """
        self._meter = meter
        self._spool = spool
        self._owners = OwnerBook(names)
        self._boot_id = boot_id
        self._unix_ms = unix_ms
        self._now_ns = now_ns
        self._totals = totals
        self.qualities = qualities
        self._footprints = footprints
        self._committed = 0
        self._held: Sheet | None = None
        self._notes: tuple[UsageRecord, ...] = ()
        self._more_marks = dict(more_marks or {})
        self._balance = Balance.from_bytes(spool.marks.get(BALANCE_MARK, b""), boot_id)

    @property
    def owners(self) -> OwnerBook:
        """Names of owners, also for what is not committed yet."""
        return self._owners

    def begin(self, totals: HostTotals) -> None:
        """Take the host's totals at the moment the meter began, if none were taken in this boot.

        On record at once: after a crash before the first sheet, later totals would not be those
        with which the kernel began to count.
        """
        if not self._balance.counters:
            _published, self._balance = settle(self._balance, totals, {})
            marks = {**self._spool.marks, **self._more_marks}
            self._spool.commit((), {**marks, BALANCE_MARK: self._balance.to_bytes()})

    def step(self, charging: Charging) -> Step:
        """Commit one sheet, under the policy that was in force while it was open."""
        began_ns = self._now_ns()
        sheet = self._meter.close_sheet()
        mark = SheetMark.from_bytes(self._spool.marks.get(SHEET_MARK, b""))
        if mark.is_of(sheet, self._boot_id):
            if not self._spool.settle():
                return Step(refusal=Refusal.BLOCKED)
            discard = self._meter.discard
            if self._committed != sheet.number:
                # An earlier daemon's: what a fallback meter holds beside it is not in that frame.
                discard = getattr(self._meter, "discard_stale", discard)
            discard(sheet.number)
            began_ns = self._now_ns()
            sheet = self._meter.close_sheet()
        # At once, and only where it was closed just now: the host's totals have gone on since an
        # earlier daemon closed it.
        is_late = sheet.closed_ns <= began_ns
        totals = {} if is_late else self._totals()
        self._owners.begin(charging)
        found = read_sheet(sheet, self._owners, self.qualities, self._unix_ms)
        published, balance = settle(self._balance, totals, found.attributed)
        footprints, baseline = self._take_footprints()
        notes = self._notes
        records: Collection[UsageRecord] = SheetLines(
            (*notes, *self._unseen(sheet, mark)),
            found.compute,
            (
                *found.others,
                *self._host_line(sheet, published),
                *footprint_records(footprints, charging),
            ),
        )
        marks = {
            **self._more_marks,
            SHEET_MARK: SheetMark(
                self._boot_id,
                sheet.number,
                sheet.opened_ns,
                sheet.closed_ns,
                self._unix_ms(sheet.closed_ns),
            ).to_bytes(),
            BALANCE_MARK: balance.to_bytes(),
        }
        if baseline:
            marks[FOOTPRINT_MARK] = baseline
        work_baseline = getattr(sheet, "baseline", b"")  # of a fallback's sheet
        if work_baseline:
            marks[FALLBACK_MARK] = work_baseline
        # A host at rest fills no disk: what has no records needs no frame. What the balance did
        # meanwhile follows from the older one, for nobody was given anything.
        is_empty = not records and self._committed != 0
        refusal = None if is_empty else self._spool.commit(records, marks)
        merged = refusal is Refusal.FULL
        if merged:
            records = merge(records, by_process=False)
            refusal = self._spool.commit(records, marks)
        if refusal is not None:
            self._held = sheet
            return Step(refusal=refusal)
        self._held = None
        self._notes = self._notes[len(notes) :]
        self._committed = sheet.number
        self._balance = balance
        if self._footprints is not None:
            self._footprints.committed()
        self._meter.discard(sheet.number)
        return Step(
            sheet=sheet,
            records=records,
            work=found.work,
            is_late=is_late,
            merged=merged,
            quantities=found.attributed,
            unattributed=published,
        )

    def end(self, charging: Charging) -> Refusal | None:
        """Commit what is there, and count no more: nobody wants it metered.

        What is used from now on is nobody's, also when it is metered again. All baselines go:
        a later one would count from them. None once it is done; may be called again.
        """
        while True:
            step = self.step(charging)
            if step.refusal is not None:
                return step.refusal
            if not step.is_late:
                break
        refusal = self.note_off()
        if refusal is None:
            # After the frame: killed in between, the next one commits what was used meanwhile.
            self._meter.end()
        return refusal

    def note_off(self) -> Refusal | None:
        """Put on record that nothing is metered from now on, if something ever was."""
        marks = self._spool.marks
        if SHEET_MARK not in marks or OFF_MARK in marks:
            return None
        now_ns = self._now_ns()
        off = SheetMark(self._boot_id, 0, now_ns, now_ns, self._unix_ms(now_ns))
        mark = SheetMark.from_bytes(marks[SHEET_MARK])
        records = []
        if mark.boot_id and mark.boot_id != self._boot_id:
            records.append(_gap(mark.end_unix_ms, off.end_unix_ms, _RESTARTED))
        kept = {**self._more_marks, OFF_MARK: off.to_bytes()}
        refusal = self._spool.commit(records, kept)
        if refusal is None:
            self._balance = Balance.from_bytes(b"", self._boot_id)
        return refusal

    def note_gap(self, start_unix_ms: int, end_unix_ms: int, detail: str) -> None:
        """Put a gap on record with the next sheet: what is known to be lost. On any thread."""
        self._notes = (*self._notes, _gap(start_unix_ms, end_unix_ms, detail))

    def hold(self) -> None:
        """Let the open sheet grow: this interval is committed together with the next."""
        self._meter.collect()

    def pending(self, charging: Charging) -> list[Sheet]:
        """What is not committed yet: the closed sheet that the ledger did not take, the open one.

        `owners` answers under this policy afterwards.
        """
        self._owners.begin(charging)
        held = [] if self._held is None else [self._held]
        return [*held, self._meter.peek()]

    def read(self, sheet: Sheet) -> SheetRecords:
        """A sheet's records, under the policy of `pending`."""
        return read_sheet(sheet, self._owners, self.qualities, self._unix_ms)

    def _take_footprints(self) -> tuple[Sequence[FootprintRow], bytes]:
        if self._footprints is None:
            return (), self._spool.marks.get(FOOTPRINT_MARK, b"")
        return self._footprints.take()

    def _host_line(self, sheet: Sheet, published: Mapping[Meter, int]) -> list[UsageRecord]:
        unsupported = frozenset(
            meter for meter, quality in self.qualities.of.items() if quality is Quality.UNSUPPORTED
        )
        if not published and not unsupported:
            return []
        start_ms = self._unix_ms(sheet.opened_ns)
        return [
            UsageRecord(
                kind=UsageKind.UNATTRIBUTED,
                start_unix_ms=start_ms,
                end_unix_ms=max(start_ms, self._unix_ms(sheet.closed_ns)),
                quantities=dict(published),
                # Of totals that the host keeps by its own means, to its own exactness.
                estimated=frozenset(published),
                unsupported=unsupported - published.keys(),
                detail="the host's totals less its processes'",
            )
        ]

    def _unseen(self, sheet: Sheet, mark: SheetMark) -> list[UsageRecord]:
        """A line for time that no sheet has, since the last one that was committed."""
        off = SheetMark.from_bytes(self._spool.marks.get(OFF_MARK, b""))
        if off.boot_id:
            if off.boot_id == self._boot_id and sheet.opened_ns <= off.closed_ns:
                return []  # killed before it was ended: this sheet goes on from the last one
            mark, detail = off, "metering was off"
        elif not mark.boot_id:
            return []
        elif mark.boot_id != self._boot_id:
            detail = _RESTARTED
        elif sheet.number <= mark.number:
            detail = _NOT_LOADED
        else:
            return []
        return [_gap(mark.end_unix_ms, self._unix_ms(sheet.opened_ns), detail)]


def _gap(start_unix_ms: int, end_unix_ms: int, detail: str) -> UsageRecord:
    return UsageRecord(
        kind=UsageKind.GAP,
        start_unix_ms=min(start_unix_ms, end_unix_ms),
        end_unix_ms=end_unix_ms,
        quantities={},
        detail=detail,
    )
