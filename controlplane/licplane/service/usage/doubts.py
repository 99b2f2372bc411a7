# SPDX-License-Identifier: Apache-2.0
"""Usage that is stored as its host signed it, and that people should look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from licplane.service.usage.values import ReadRecords
from licplane.store.usage_model import METERS, UsageRow

_CPU: Final = [name for name, _ in METERS].index("cpu_ns")
_CORES_MAX: Final = 10_000
_SLACK_MS: Final = 60_000
"""No machine gives a record more CPU time than so many cores in its interval and this."""


def doubts(read: ReadRecords, kept_ms: int) -> Iterator[tuple[str, int, int, str]]:
    """Alarms for rows that are stored and nobody should believe: code, last sequence, how many,
    and words."""
    beyond = [row for row in read.rows if row.quantities[_CPU] > _cpu_most_ns(row)]
    if beyond:
        row = beyond[-1]
        detail = (
            f"Record {row.sequence} has {row.quantities[_CPU] // 10**9} s of CPU time in"
            f" {(row.end_ms - row.start_ms) / 1000:g} s"
        )
        yield "implausible", row.sequence, len(beyond), detail
    late = [row for row in read.rows if row.end_ms <= kept_ms] if read.start_ms < kept_ms else []
    if late:
        detail = "Usage of days whose sums were deleted as old is on no bill"
        yield "late", late[-1].sequence, len(late), detail


def _cpu_most_ns(row: UsageRow) -> int:
    return (row.end_ms - row.start_ms + _SLACK_MS) * 1_000_000 * _CORES_MAX
