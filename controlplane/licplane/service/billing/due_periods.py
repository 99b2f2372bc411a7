# SPDX-License-Identifier: Apache-2.0
"""Which periods of a plan are to be billed. No moment is billed twice under one plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.service.billing.documents import plan_of
from licplane.service.billing.periods import Period, period_at
from licplane.service.texts import shown
from licplane.store.billing_records import BillingDocument, BillingReads, ClosedPeriod
from licplane.store.reader import Reader

BACK_MS: Final = 400 * 86_400_000
"""A period that began earlier is closed by hand or not at all."""


def unbilled(reader: BillingReads, document: BillingDocument, now_ms: int) -> Iterator[Period]:
    """Periods of the plan in force that are not closed, oldest first, without end.

    The first is the one in which the plan was made. Those in which the plan was never in force,
    for it was removed and made again later, are left out, and those that a closed period
    overlaps: the plan may have had another kind of period.
    """
    plan = plan_of(document)
    versions = reader.billing_versions("plan", document.name)
    removed = [
        (one.at_unix_ms, after.at_unix_ms)
        for one, after in itertools.pairwise(versions)
        if not one.document
    ]
    closed = reader.closed_periods(plan.name)
    period = period_at(plan.period, max(versions[0].at_unix_ms, now_ms - BACK_MS))
    while True:
        gone = any(begin <= period.start_ms and period.end_ms <= end for begin, end in removed)
        if not gone and overlapped(period, closed) is None:
            yield period
        period = period_at(plan.period, period.end_ms)


def overlapped(period: Period, closed: Sequence[ClosedPeriod]) -> ClosedPeriod | None:
    """A closed period that has a moment in common with `period`."""
    for one in closed:
        if one.start_ms < period.end_ms and period.start_ms < one.end_ms:
            return one
    return None


def is_final(reader: Reader, period: ClosedPeriod) -> bool:
    """Whether sums that a closed period is of were deleted as old: what was billed then stays,
    for what it would come to now nobody can say."""
    return period.start_ms < reader.usage_work().daily_kept_until_ms


def check_final(reader: Reader, period: ClosedPeriod) -> None:
    """Raises PlaneError REFUSED for a final one."""
    if is_final(reader, period):
        raise PlaneError(
            ExitCode.REFUSED,
            f"Sums of {shown(period.period)} were deleted as old, so it cannot be corrected",
            "What was billed stays; `licplane usage retention` says how long sums are kept",
        )
