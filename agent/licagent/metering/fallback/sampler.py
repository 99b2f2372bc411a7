# SPDX-License-Identifier: Apache-2.0
"""The meter for kernels whose own counting programs do not load (no BTF, or before 5.12).

It has the methods of `kernel.usage_meter.UsageMeter`, so whoever bills need not tell them apart:

    meter = FallbackMeter(boot_id=..., baseline=ledger.marks.get("fallback", b""))
    meter.begin()
    meter.collect()                                   # cheap enough for every interval
    sheet = meter.close_sheet()
    ledger.commit([... sheet.work ...], {"fallback": sheet.baseline})
    meter.discard(sheet.number)                       # not called: close_sheet() gives it again

Nothing is pinned in the kernel here: what a process used until the last commit is in the
baseline, so a daemon that was killed goes on from there for every process that still lives. What
ended while no daemon ran is in no process's line; the host's totals have it (unattributed).
"""

from __future__ import annotations

from collections.abc import Mapping

from licagent.domain.usage import Meter, Quality
from licagent.metering.fallback.rows import FallbackSheet


class FallbackMeter:
    """psutil and taskstats in sheets."""

    def __init__(self, *, boot_id: str, baseline: bytes = b"") -> None:
        """`baseline`: the mark "fallback" of the ledger; one of another boot is not used."""
        raise NotImplementedError

    @property
    def quality(self) -> Mapping[Meter, Quality]:
        """How far each meter may be trusted on this host."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """ "taskstats" or "psutil": where the numbers come from; for `status`."""
        raise NotImplementedError

    @property
    def open_number(self) -> int:
        """Number of the open sheet; 0 before `begin`."""
        raise NotImplementedError

    def begin(self) -> None:
        """Open the first sheet, and start listening (a thread)."""
        raise NotImplementedError

    def collect(self) -> None:
        """Add what live tasks used so far to the open sheet."""
        raise NotImplementedError

    def close_sheet(self) -> FallbackSheet:
        """Collect, close the sheet, open the next; a closed one not yet discarded comes again."""
        raise NotImplementedError

    def discard(self, number: int) -> None:
        """The closed sheet of this number is on disk; another number is ignored."""
        raise NotImplementedError

    def peek(self) -> FallbackSheet:
        """The open sheet after a collect; nothing changes."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop listening."""
        raise NotImplementedError
