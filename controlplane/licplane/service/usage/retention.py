# SPDX-License-Identifier: Apache-2.0
"""How long records and sums are kept, and deleting what is older."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from licplane.errors import ExitCode, PlaneError
from licplane.service.access import Permission, require
from licplane.service.answers import ChangeResult, Difference
from licplane.service.billing.due_periods import unbilled
from licplane.service.core import Core
from licplane.service.requests import Change
from licplane.service.results import change_from, change_to
from licplane.service.texts import refuse
from licplane.service.values import Actor
from licplane.service.work import Work, canonical, perform
from licplane.store.database import Store
from licplane.store.reader import Reader

_SETTING: Final = "usage.retention"
_DAY_MS: Final = 86_400_000
_DAYS_MAX: Final = 36_500


@dataclass(frozen=True, slots=True)
class Retention:
    """Days that usage is kept for after its day; 0: for ever."""

    records_days: int = 100
    """Single records and the batches that hosts signed: what --explain and verify look at."""
    hourly_days: int = 400
    daily_days: int = 0


class UsageRetention:
    """Reading and changing it."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def get(self, actor: Actor) -> Retention:
        """As it is."""
        require(actor, Permission.READ_USAGE)
        with self._core.store.reading() as reader:
            return retention(reader)

    def set(self, actor: Actor, change: Change, days: Mapping[str, int]) -> ChangeResult:
        """Change some of it; `days` by the names of Retention."""
        require(actor, Permission.CHANGE_BILLING)
        for name, value in days.items():
            if name not in Retention.__slots__ or not 0 <= value <= _DAYS_MAX:
                raise refuse(
                    f"The retention {name} of {value} days is none",
                    f"Use {', '.join(Retention.__slots__)}, of 0 (for ever) to {_DAYS_MAX} days",
                )
        request: dict[str, object] = {
            "method": "set_retention",
            "days": dict(days),
            "dry_run": change.dry_run,
        }

        def body(work: Work) -> ChangeResult:
            before = retention(work.transaction)
            after = Retention(**{**asdict(before), **days})
            _check(after)
            if after == before:
                return ChangeResult(changed=False, dry_run=change.dry_run)
            work.transaction.put_setting(_SETTING, canonical(asdict(after)).encode())
            work.audit("usage.retention", "usage", {"from": asdict(before), "to": asdict(after)})
            lines = [
                line
                for name in Retention.__slots__
                if (old := getattr(before, name)) != (new := getattr(after, name))
                for line in (f"-{name} = {old}", f"+{name} = {new}")
            ]
            difference = Difference("update", "retention", "usage", tuple(lines))
            return ChangeResult(True, change.dry_run, differences=(difference,))

        return perform(
            self._core, actor, change, request, body, encode=change_to, decode=change_from
        )


def retention(reader: Reader) -> Retention:
    """As it is."""
    data = reader.setting(_SETTING)
    if not data:
        return Retention()
    value: dict[str, Any] = json.loads(data)
    return Retention(**{name: int(value[name]) for name in Retention.__slots__ if name in value})


def purge(store: Store, now_ms: int) -> int:
    """Delete what is older, but no record and no sum of a period that is still to be billed, and
    no record that no rollup has. How many rows and parts went."""
    with store.reading() as reader:
        keep = retention(reader)
        bound_ms = _unbilled_ms(reader, now_ms)
    with store.recording() as recorder:
        recorder.lock_usage()
        waiting_ms = recorder.earliest_waiting_ms()
        gone = 0
        records_ms = hourly_ms = daily_ms = 0
        if keep.records_days:
            records_ms = _floor(min(now_ms - keep.records_days * _DAY_MS, bound_ms))
            if waiting_ms is not None:
                records_ms = min(records_ms, _floor(waiting_ms))
            records_ms = max(0, records_ms)
            gone += recorder.purge_records(records_ms // _DAY_MS)
        if keep.hourly_days:
            hourly_ms = max(0, _floor(min(now_ms - keep.hourly_days * _DAY_MS, bound_ms)))
        if keep.daily_days:
            # Bills are made of these.
            daily_ms = max(0, _floor(min(now_ms - keep.daily_days * _DAY_MS, bound_ms)))
        gone += recorder.purge_rollups(hourly_before_ms=hourly_ms, daily_before_ms=daily_ms)
        recorder.note_kept(records_ms=records_ms, hourly_ms=hourly_ms, daily_ms=daily_ms)
    return gone


def _unbilled_ms(reader: Reader, now_ms: int) -> int:
    """The start of the earliest period that is not closed, or may not be."""
    found = now_ms
    for document in reader.billing_documents("plan"):
        found = min(found, next(unbilled(reader, document, now_ms)).start_ms)
    return found


def _floor(unix_ms: int) -> int:
    return unix_ms - unix_ms % _DAY_MS


def _check(after: Retention) -> None:
    order = [value or _DAYS_MAX + 1 for value in asdict(after).values()]
    if order != sorted(order):
        raise PlaneError(
            ExitCode.USAGE,
            "Sums would go before what they are made of",
            "Keep records no longer than hourly sums, and those no longer than daily ones",
        )
