# SPDX-License-Identifier: Apache-2.0
"""Opening, closing, reading and discarding sheets of usage. See licagent.kernel.usage."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Sequence
from typing import Final

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord
from licagent.kernel.flows import FlowMeters
from licagent.kernel.iterators import Iterators
from licagent.kernel.maps import MappedArray
from licagent.kernel.rcu import wait_for_readers
from licagent.kernel.usage import FlowRow, MeterSupport, Sheet, WorkRow
from licagent.kernel.usage_structs import SheetTimes
from licagent.kernel.work import WorkTable

_WORK_HOOKS: Final = ("usage_fork", "usage_free", "iter_task_collect")
_SHEETS_A_SWEEP: Final = 120
"""Ten minutes, with sheets of 5 seconds."""


class UsageMeter:
    """The sheets of one pin folder. One thread at a time."""

    def __init__(self, pins: PinFolder) -> None:
        self._control = ControlWord(pins)
        self._iterators = Iterators(pins)
        self._times: MappedArray[SheetTimes] = MappedArray(pins.maps / "sheets", SheetTimes)
        self._flows = FlowMeters(pins)
        has_work = (pins.maps / "work").exists() and all(
            (pins.links / name).exists() for name in _WORK_HOOKS
        )
        self._work = WorkTable(pins) if has_work else None
        self._closed: Sheet | None = None
        self.support = MeterSupport(
            work=has_work,
            payload=(pins.links / "usage_settle").exists(),
            flows=(pins.links / "cgroup_egress").exists()
            and (pins.links / "cgroup_ingress").exists(),
        )

    @property
    def open_number(self) -> int:
        """The sheet in which usage adds up; 0 before `begin`."""
        return self._control.sheet

    def begin(self) -> None:
        """Go on with what is pinned, or open the first sheet: from now on usage is counted.

        What processes and connections used before that is nobody's.
        """
        self._flows.begin()
        if self._control.sheet == 0:
            self._control.begin_metering(_now_ns())
            self._open(self._control.discarded_sheet + 1)
        self.collect()

    def end(self) -> None:
        """Count no more. What is in the open sheet is lost: commit it before.

        `begin` begins anew: what is used until then is nobody's. Idempotent.
        """
        number = self._control.sheet
        if number == 0:
            return
        self._control.open_sheet(0, mmap.PAGESIZE)
        wait_for_readers()
        for each in (number - 1, number):
            if each > self._control.discarded_sheet:
                if self._work is not None:
                    self._work.discard(each)
                self._flows.discard(each)
        if self._work is not None:
            self._work.clear_accounts()
        self._control.discarded_sheet = number
        self._closed = None

    def _open(self, number: int) -> None:
        self._times[number & 1].opened_ns = _now_ns()
        self._times[number & 1].closed_ns = 0
        self._control.open_sheet(number, mmap.PAGESIZE)

    def collect(self) -> None:
        """Bring what live threads used so far into the open sheet."""
        self._iterators.collect_usage()

    def close_sheet(self) -> Sheet:
        """Close the open sheet and open the next; or the closed one that was not discarded yet.

        The same sheet comes again, with the same rows, until `discard`.
        """
        number = self._control.sheet
        if self._control.discarded_sheet < number - 1:
            if self._closed is None or self._closed.number != number - 1:
                wait_for_readers()  # an earlier daemon may have closed it just now
                self._closed = self._read(number - 1, self._times[(number - 1) & 1].closed_ns)
            return self._closed
        self.collect()
        now_ns = _now_ns()
        self._times[number & 1].closed_ns = now_ns
        self._open(number + 1)
        wait_for_readers()
        self._closed = self._read(number, now_ns)
        return self._closed

    def peek(self) -> Sheet:
        """The open sheet as it stands; it goes on."""
        self.collect()
        return self._read(self._control.sheet, _now_ns())

    def _read(self, number: int, closed_ns: int) -> Sheet:
        flows, spilled_flows = self._flows.read(number)
        work: Sequence[WorkRow] = ()
        spilled_work: WorkRow | None = None
        if self._work is not None:
            work, spilled_work = self._work.read(number)
        return Sheet(
            number=number,
            opened_ns=int(self._times[number & 1].opened_ns),
            closed_ns=int(closed_ns),
            work=work,
            flows=flows,
            spilled_work=spilled_work,
            spilled_flows=spilled_flows,
        )

    def discard(self, number: int) -> None:
        """Empty a closed sheet: what it held is kept elsewhere. Idempotent.

        Raises:
            ValueError: the sheet is open, or not there yet.
        """
        if number >= self._control.sheet:
            raise ValueError(f"sheet {number} is not closed: {self._control.sheet} is open")
        if number <= self._control.discarded_sheet:
            return
        if self._work is not None:
            self._work.discard(number)
            if number % _SHEETS_A_SWEEP == 0:
                self._work.sweep()
        self._flows.discard(number)
        self._control.discarded_sheet = number
        self._closed = None

    def rows(self) -> Iterator[WorkRow | FlowRow]:
        """All rows of the open sheet; for tests and people."""
        sheet = self.peek()
        yield from sheet.work
        yield from sheet.flows

    def close(self) -> None:
        """Unmap and close; the kernel goes on counting."""
        if self._work is not None:
            self._work.close()
        self._flows.close()
        self._times.close()
        self._control.close()


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
