# SPDX-License-Identifier: Apache-2.0
"""Totals since the daemon started, by process, unit and license: what `top` shows.

Kept from committed sheets; what is not committed yet is added at each look. Processes leave 60 s
after they have ended, units and licenses when nothing of theirs was used for as long.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from licagent.domain.usage_lines import Amounts
from licagent.metering.owners import Known, OwnedWork, OwnerBook
from licagent.metering.rows import FlowRow, Sheet, WhoRow

STAY_NS: Final = 60_000_000_000
"""How long what has ended stays in the table."""
PROCESSES_MAX: Final = 20_000
"""Of more, those that used nothing for the longest time leave: `top` is a look at a host, and
its memory is not the price of it. They come back, from zero, with what they use next."""
_SHORT_MAX: Final = 2_000

K = TypeVar("K")

AMOUNTS: Final = (
    "cpu_ns",
    "read_bytes",
    "write_bytes",
    "tx_payload_bytes",
    "rx_payload_bytes",
    "tx_wire_bytes",
    "rx_wire_bytes",
)
"""What is added up, in the order of `Line.amounts`."""
_WORK_AMOUNTS: Final = 3
"""The first of them are those of work, as they are of COMPUTE_METERS."""

ProcessKey = tuple[int, int]
"""pid, and CLOCK_BOOTTIME of its start: a pid alone names nothing for long."""


ShortKey = tuple[str, str, str, str, str]
"""Name, executable, user, unit and license."""


@dataclass(frozen=True, slots=True)
class Alive:
    """A live process, as /proc has it."""

    start_ns: int
    """CLOCK_BOOTTIME, cut to a clock tick."""
    parent: int
    resident_bytes: int


@dataclass(slots=True)
class Line:
    """Totals of a process, a unit or a license."""

    amounts: list[int] = field(default_factory=lambda: [0] * len(AMOUNTS))
    used_ns: int = 0
    """CLOCK_BOOTTIME at the end of the last sheet it is in."""
    told_by: int = 0
    """Of a process: `Known.number` of who said last who it is."""
    exited_ns: int = 0
    """Of a process: CLOCK_BOOTTIME at which it was known to be gone; 0 while it lives."""


@dataclass(slots=True)
class ProcessLine(Line):
    """Totals of one process, and who it is: as of the latest sheet, for it may exec."""

    name: str = ""
    executable: str = ""
    user: str = ""
    unit: str = ""
    license: str = ""

    def copy(self) -> ProcessLine:
        """One that can be added to."""
        return replace(self, amounts=list(self.amounts))


@dataclass(slots=True)
class Lines:
    """All of it at one moment."""

    processes: dict[ProcessKey, ProcessLine] = field(default_factory=dict)
    units: dict[str, Line] = field(default_factory=dict)
    licenses: dict[str, Line] = field(default_factory=dict)
    short: dict[ShortKey, Line] = field(default_factory=dict)
    """Processes that lived and died between two samples, together."""
    of_pid: dict[int, ProcessKey] = field(default_factory=dict)
    """The latest process of a pid: flows may not know when theirs began."""


class ProcessTable:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self._lines = Lines()

    def take(self, sheet: Sheet, owners: OwnerBook, work: OwnedWork | None = None) -> None:
        """Add a sheet that is committed. `work`: of its rows, where that is known already."""
        _Adder(self._lines, owners, sheet.closed_ns).add(sheet, work)
        self._prune(sheet.closed_ns)

    def look(
        self,
        pending: Iterable[Sheet],
        owners: OwnerBook,
        alive: Callable[[Iterable[int]], Mapping[int, Alive]],
        now_ns: int,
        tick_ns: int,
    ) -> tuple[Lines, Mapping[int, Alive]]:
        """The totals with what is not committed yet, and which processes live.

        `alive`: the live ones among these pids. Processes that are gone are noted as such.
        """
        lines = Lines(
            dict(self._lines.processes),
            dict(self._lines.units),
            dict(self._lines.licenses),
            dict(self._lines.short),
            dict(self._lines.of_pid),
        )
        tables = (lines.processes, lines.units, lines.licenses, lines.short)
        shared = frozenset(id(line) for table in tables for line in table.values())
        for sheet in pending:
            _Adder(lines, owners, sheet.closed_ns, shared, is_look=True).add(sheet)
        living = alive(pid for pid, _start in lines.processes)
        for (pid, start_ns), line in lines.processes.items():
            found = living.get(pid)
            if found is not None and (not start_ns or abs(found.start_ns - start_ns) <= tick_ns):
                continue
            if not line.exited_ns:
                line.exited_ns = now_ns
        return lines, living

    def _prune(self, now_ns: int) -> None:
        lines, oldest_ns = self._lines, now_ns - STAY_NS
        gone = [
            key
            for key, line in lines.processes.items()
            if line.exited_ns and line.exited_ns < oldest_ns
        ]
        self._drop(gone)
        over = len(lines.processes) - PROCESSES_MAX
        if over > 0:
            # The ended ones first, then by when they were last in a sheet.
            self._drop(heapq.nsmallest(over, lines.processes, key=self._worth))
        _forget(lines.units, oldest_ns)
        _forget(lines.licenses, oldest_ns)
        _forget(lines.short, oldest_ns)
        over = len(lines.short) - _SHORT_MAX
        if over > 0:
            short = lines.short
            for name in heapq.nsmallest(over, short, key=lambda name: short[name].used_ns):
                del short[name]

    def _worth(self, key: ProcessKey) -> tuple[bool, int]:
        line = self._lines.processes[key]
        return not line.exited_ns, line.used_ns

    def _drop(self, keys: Iterable[ProcessKey]) -> None:
        lines = self._lines
        for key in keys:
            lines.processes.pop(key).told_by = 0  # whoever has it yet looks for another
            if lines.of_pid.get(key[0]) == key:
                del lines.of_pid[key[0]]

    def sweep(self, living: Mapping[int, object], now_ns: int) -> None:
        """Note which processes have ended without a row that said so. `living`: by pid."""
        for (pid, _start_ns), line in self._lines.processes.items():
            if not line.exited_ns and pid not in living:
                line.exited_ns = now_ns

    def __len__(self) -> int:
        return len(self._lines.processes)


def _forget(table: dict[K, Line], oldest_ns: int) -> None:
    for name in [name for name, line in table.items() if line.used_ns < oldest_ns]:
        del table[name]


class _Adder:
    """Adds one sheet to lines. Those in `shared` belong to somebody else and are copied first.

    `is_look`: the lines are thrown away afterwards, so nobody may remember one of them; `shared`
    alone does not tell, for it is empty while the table is.
    """

    def __init__(
        self,
        lines: Lines,
        owners: OwnerBook,
        at_ns: int,
        shared: frozenset[int] = frozenset(),
        *,
        is_look: bool = False,
    ) -> None:
        self._lines = lines
        self._owners = owners
        self._at_ns = at_ns
        self._shared = shared
        self._is_look = is_look

    def add(self, sheet: Sheet, work: OwnedWork | None = None) -> None:
        """`work`: what the book of owners says of it, where it was asked already."""
        if work is None:
            work = self._owners.of_work(sheet.work)
        self._works(work)
        for flow in sheet.flows:
            self._flow(flow)

    def _works(self, work: OwnedWork) -> None:
        at_ns, is_look = self._at_ns, self._is_look
        groups: dict[tuple[str, str], list[Amounts]] = {}
        group: tuple[str, str] | None = None
        theirs: list[Amounts] = []
        for key, known, used in zip(work.keys, work.owners, work.amounts, strict=True):
            line: Line | None = known.place
            if line is None or line.told_by != known.number or is_look:
                line = self._line_of(work.who(key), known)
            cpu_ns, read_bytes, written_bytes, _cancelled, _memory, ended = used
            amounts = line.amounts
            amounts[0] += cpu_ns
            if read_bytes:
                amounts[1] += read_bytes
            if written_bytes:
                amounts[2] += written_bytes
            if line.used_ns < at_ns:  # noqa: PLR1730 - a call would cost more than the rest
                line.used_ns = at_ns
            if ended and known.owner.pid:
                line.exited_ns = at_ns
            if known.shares is not group:
                group = known.shares
                theirs = groups.setdefault(group, [])
            theirs.append(used)
        # Of 10,000 rows most are of a few units and licenses: those are added to once.
        for (unit, license_), amounts_of_them in groups.items():
            sums = tuple(map(sum, zip(*amounts_of_them, strict=True)))[:_WORK_AMOUNTS]
            self._bump(self._line(self._lines.units, unit), sums)
            self._bump(self._line(self._lines.licenses, license_), sums)

    def _line_of(self, who: WhoRow, known: Known) -> Line:
        process = self._process(who, known)
        if process is None:
            return self._short(who, known, known.compute.license)
        if known.compute.license:
            process.license = known.compute.license
        if who.start_ns and not self._is_look:
            known.place = process
        return process

    def _flow(self, row: FlowRow) -> None:
        known = self._owners.of(row.who)
        charging = self._owners.charging
        license_ = charging.network(row.license, row.resource, known.subject).license
        amounts = (
            *(0, 0, 0),
            *(row.tx_payload_bytes, row.rx_payload_bytes, row.tx_wire_bytes, row.rx_wire_bytes),
        )
        process = self._process(row.who, known)
        if process is not None:
            self._bump(process, amounts)
            if license_ and not known.compute.license:
                process.license = license_
        else:
            self._bump(self._short(row.who, known, known.compute.license or license_), amounts)
        self._bump(self._line(self._lines.units, known.owner.unit), amounts)
        self._bump(self._line(self._lines.licenses, license_), amounts)

    def _process(self, who: WhoRow, known: Known) -> ProcessLine | None:
        if not who.pid:
            return None
        lines = self._lines
        key = (who.pid, who.start_ns)
        if not who.start_ns:
            key = lines.of_pid.get(who.pid, key)
        line = lines.processes.get(key)
        if line is None:
            line = lines.processes[key] = ProcessLine()
            lines.of_pid[who.pid] = key
        elif id(line) in self._shared:
            line = lines.processes[key] = line.copy()
        if line.told_by == known.number:
            return line
        line.told_by, owner = known.number, known.owner
        line.name = who.comm or line.name
        line.executable = owner.executable or line.executable
        line.user = owner.user or line.user
        line.unit = owner.unit or line.unit
        return line

    def _short(self, who: WhoRow, known: Known, license_: str) -> Line:
        owner = known.owner
        key = (who.comm, owner.executable, owner.user, owner.unit, license_)
        return self._line(self._lines.short, key)

    def _line(self, table: dict[K, Line], name: K) -> Line:
        line = table.get(name)
        if line is None:
            line = table[name] = Line()
        elif id(line) in self._shared:
            line = table[name] = Line(list(line.amounts), line.used_ns)
        return line

    def _bump(self, line: Line, amounts: tuple[int, ...]) -> None:
        for position, amount in enumerate(amounts):
            if amount:
                line.amounts[position] += amount
        line.used_ns = max(line.used_ns, self._at_ns)
