# SPDX-License-Identifier: Apache-2.0
"""From when on whoever executed a version of a file executed what was measured.

A version is known by its change time, of CLOCK_REALTIME in whole ticks. Within one tick a file
may be written, executed and written again, and has one change time for both contents: reading it
later says nothing of the first exec. So a content counts only for execs after that tick. Those
are told in CLOCK_BOOTTIME, by the kernel's programs, while the wall clock can be set in between.
Any of these instants will do, and the earliest is taken:

- the reading's own: the file was older than FRESH_NS then, and a later write moves its time;
- the change time by the lowest that the wall clock ever stood in this boot, against
  CLOCK_BOOTTIME: too late by as much as it was set forward, and never too early;
- the change time by where the wall clock stands now, for execs since it was last set forward.

Setting it back makes all of them later. Both clocks are slewed alike and both go on through a
suspend (timekeeping_inject_sleeptime64(), kernel/time/timekeeping.c), so that only setting
moves their distance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from licagent.host.measurable import FRESH_NS
from licagent.kernel.control import WallRecord

_STEP_NS: Final = 1_000_000
"""Smaller steps of the wall clock are not looked for; twice that is on the safe side."""


class Instants(NamedTuple):
    """The clocks at one look, for many files that were measured before it."""

    now_ns: int  # CLOCK_BOOTTIME
    offset_ns: int  # CLOCK_REALTIME - CLOCK_BOOTTIME, a lower bound of it since `since_ns`
    lowest_ns: int  # a lower bound of it in all of this boot
    since_ns: int  # CLOCK_BOOTTIME

    def from_ns(self, ctime_ns: int) -> int:
        """CLOCK_BOOTTIME from which on execs of this change time had the content."""
        settled_ns = ctime_ns + FRESH_NS + 2 * _STEP_NS
        earliest_ns = min(
            self.now_ns,
            settled_ns - self.lowest_ns,
            max(settled_ns - self.offset_ns, self.since_ns),
        )
        return max(earliest_ns, 0)


class ExecTimes:
    """Watches the wall clock against CLOCK_BOOTTIME; what it saw outlives the daemon."""

    def __init__(
        self,
        record: WallRecord,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        boot_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        """`record`: of this boot, kept by the kernel; the clocks are for tests."""
        self._record = record
        self._wall_ns = wall_ns
        self._boot_ns = boot_ns
        self.look()

    def look(self) -> Instants:
        """Notice whether the wall clock was set. Call it every few seconds."""
        before_ns = self._boot_ns()
        wall_ns = self._wall_ns()
        after_ns = self._boot_ns()
        # Whatever takes long in between, the distance of the clocks is within these.
        least_ns, most_ns = wall_ns - after_ns, wall_ns - before_ns
        offset_ns, lowest_ns, since_ns = self._record.read() or (least_ns, least_ns, 0)
        if least_ns > offset_ns + _STEP_NS:
            offset_ns, since_ns = least_ns, after_ns
        elif most_ns < offset_ns - _STEP_NS:
            offset_ns, lowest_ns = least_ns, min(lowest_ns, least_ns)
        if (offset_ns, lowest_ns, since_ns) != self._record.read():
            self._record.write(offset_ns, lowest_ns, since_ns)
        return Instants(before_ns, offset_ns, lowest_ns, since_ns)
