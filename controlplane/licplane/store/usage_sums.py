# SPDX-License-Identifier: Apache-2.0
"""What was used between two moments, added up by whatever is asked for.

Whole days and hours come from the rollups; the ends of a window that is not of whole hours, and
batches that no rollup has counted yet, come from the records. One snapshot: nothing is counted
twice or left out, whatever arrives meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    and_,
    cast,
    func,
    literal,
    not_,
    or_,
    select,
    text,
)

from licplane.store.money_schema import (
    LOW_BITS,
    METERS,
    high,
    usage_daily,
    usage_hourly,
)
from licplane.store.usage_rollups import (
    DAY_MS,
    HOUR_MS,
    RollupReads,
    Waiting,
    halves,
    named,
)
from licplane.store.usage_schema import (
    usage_owners,
    usage_records,
    usage_scopes,
)

FOREVER_MS: Final = 2**62 - 2**62 % DAY_MS
"""The end of a window that has none."""

_CHAINS: Final = 50
"""Chains of waiting records that one statement reads."""

Key = tuple[str | int, ...]

_OWNER: Final = {
    "unit": usage_owners.c.unit,
    "cgroup": usage_owners.c.cgroup,
    "user": usage_owners.c.user_name,
    "uid": usage_owners.c.uid_plus_one,
    "executable": usage_owners.c.executable,
}
_SCOPE: Final = {
    "organization": usage_scopes.c.org,
    "project": usage_scopes.c.project,
    "environment": usage_scopes.c.environment,
    "region": usage_scopes.c.region,
}
_OWN: Final = {
    "license": "license",
    "resource": "resource",
    "binding": "binding",
    "host": "host_id",
    "kind": "kind",
    "protocol": "protocol",
    "loopback": "loopback",
}
_PROCESS: Final = {"pid": "pid", "process_start": "process_start_ms"}
TIMES: Final = {"hour": HOUR_MS, "day": DAY_MS}
DIMENSIONS: Final = (*_OWN, *_SCOPE, *_OWNER, *_PROCESS, *TIMES)
"""What sums can be split by."""


@dataclass(frozen=True, slots=True)
class Window:
    """From `since_ms` up to, and without, `until_ms`. What ended in it is in it."""

    since_ms: int
    until_ms: int


@dataclass(slots=True)
class UsageSum:
    """One line of an answer."""

    key: Key
    quantities: dict[str, int] = field(default_factory=dict)
    records: int = 0
    first_ms: int = 0
    last_ms: int = 0
    estimated: int = 0  # bit masks: METER_FIRST of licplane.store.usage_model
    unsupported: int = 0

    def add(self, other: UsageSum) -> None:
        """Take in another line of the same key."""
        for meter, amount in other.quantities.items():
            self.quantities[meter] = self.quantities.get(meter, 0) + amount
        self.first_ms = min(self.first_ms, other.first_ms) if self.records else other.first_ms
        self.last_ms = max(self.last_ms, other.last_ms)
        self.records += other.records
        self.estimated |= other.estimated
        self.unsupported |= other.unsupported


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a window, and where it is read."""

    source: str  # daily, hourly, records, or waiting: records that no rollup has
    since_ms: int
    until_ms: int


class SumReads(RollupReads):
    """Adding up what is asked for."""

    def usage_sums(
        self,
        window: Window,
        by: Sequence[str],
        *,
        where: Mapping[str, Sequence[str | int]] | None = None,
        rolled_only: bool = False,
    ) -> list[UsageSum]:
        """Usage in the window, a line for each combination of `by` (of DIMENSIONS), by key.

        `where` names dimensions and the values one of which a line must have. `rolled_only`
        leaves out what no rollup has; the window is then of whole hours.
        """
        found: dict[Key, UsageSum] = {}
        for part in self.parts_of(window, by):
            if rolled_only and part.source in ("records", "waiting"):
                continue
            for line in self._lines(part, by, where or {}):
                known = found.get(line.key)
                if known is None:
                    found[line.key] = line
                else:
                    known.add(line)
        return [found[key] for key in sorted(found)]

    def parts_of(self, window: Window, by: Sequence[str] = ()) -> list[Part]:
        """Where a window is read: as coarse as it can be, as fine as it must."""
        work = self.usage_work()
        since_ms, until_ms = window.since_ms, window.until_ms
        # Where the records are gone, whole hours; where the hours are gone, whole days.
        for gone_ms, step_ms in (
            (work.kept_until_ms, HOUR_MS),
            (work.hourly_kept_until_ms, DAY_MS),
        ):
            if since_ms < gone_ms:
                since_ms -= since_ms % step_ms
            if until_ms < gone_ms:
                until_ms -= until_ms % step_ms
        first_hour = -(-since_ms // HOUR_MS) * HOUR_MS
        last_hour = until_ms // HOUR_MS * HOUR_MS
        if first_hour >= last_hour:
            return [Part("records", since_ms, until_ms)] if since_ms < until_ms else []
        parts = [
            Part("records", since_ms, first_hour),
            Part("records", last_hour, until_ms),
            Part("waiting", first_hour, last_hour),
        ]
        first_day = -(-first_hour // DAY_MS) * DAY_MS
        last_day = last_hour // DAY_MS * DAY_MS
        wants_process = any(name in _PROCESS or name == "hour" for name in by)
        gone_ms = work.hourly_kept_until_ms
        if (wants_process and first_day >= gone_ms) or first_day >= last_day:
            parts.append(Part("hourly", first_hour, last_hour))
        else:
            middle = min(max(first_day, gone_ms), last_day) if wants_process else last_day
            parts += [
                Part("hourly", first_hour, first_day),
                Part("daily", first_day, middle),
                Part("hourly", middle, last_hour),
            ]
        return [part for part in parts if part.since_ms < part.until_ms]

    def sums_of(self, source: str, window: Window, by: Sequence[str]) -> list[UsageSum]:
        """Sums of one source alone, to compare them: daily, hourly, or `counted`, which are the
        records that a rollup should have."""
        found: dict[Key, UsageSum] = {}
        limits: list[ColumnElement[bool]] = []
        if source == "counted":
            source = "records"
            waiting = self.waiting()
            limits = [not_(_is_of(one)) for one in waiting]
        for line in self._part(Part(source, window.since_ms, window.until_ms), by, {}, limits):
            found[line.key] = line
        return [found[key] for key in sorted(found)]

    def _lines(
        self, part: Part, by: Sequence[str], where: Mapping[str, Sequence[str | int]]
    ) -> Iterator[UsageSum]:
        if part.source != "waiting":
            yield from self._part(part, by, where, [])
            return
        waiting = self.waiting()
        for at in range(0, len(waiting), _CHAINS):
            chains = or_(*map(_is_of, waiting[at : at + _CHAINS]))
            yield from self._part(part, by, where, [chains])

    def _part(
        self,
        part: Part,
        by: Sequence[str],
        where: Mapping[str, Sequence[str | int]],
        more: Sequence[ColumnElement[bool]],
    ) -> Iterator[UsageSum]:
        table, time_ms, limits = _source(part)
        source: FromClause = table
        names = {*by, *where}
        if names & set(_OWNER):
            source = source.join(usage_owners, usage_owners.c.owner_id == table.c.owner_id)
        if names & set(_SCOPE):
            source = source.join(usage_scopes, usage_scopes.c.scope_id == table.c.scope_id)
        group = [_column(table, name, time_ms).label(f"key{at}") for at, name in enumerate(by)]
        totals: list[ColumnElement[Any]] = []
        is_postgres = self._connection.dialect.name == "postgresql"
        for meter in METERS:
            low, upper = halves(table.c[meter], is_postgres=is_postgres)
            if high(meter) in table.c:
                upper = upper + cast(func.sum(table.c[high(meter)]), BigInteger)
            totals += [low.label(meter), upper.label(high(meter))]
        is_rollup = "records" in table.c
        first = table.c.first_ms if is_rollup else table.c.start_ms
        last = table.c.last_ms if is_rollup else table.c.end_ms
        count = cast(func.sum(table.c.records), BigInteger) if is_rollup else func.count()
        inner = select(
            *group,
            *totals,
            count.label("lines"),
            func.min(first).label("first_ms"),
            func.max(last).label("last_ms"),
            func.bit_or(table.c.estimated).label("estimated"),
            func.bit_or(table.c.unsupported).label("unsupported"),
        ).select_from(source)
        inner = inner.where(*limits, *more)
        for name, values in where.items():
            inner = inner.where(_column(table, name, time_ms).in_(list(values)))
        if group:
            # By number: PostgreSQL would not see that two expressions with parameters are one.
            inner = inner.group_by(*(text(str(at + 1)) for at in range(len(group))))
        for row in self._all(inner):
            if not row.lines:
                continue
            found = row._mapping  # noqa: SLF001 - SQLAlchemy's own name for it
            yield UsageSum(
                key=tuple(found[f"key{at}"] for at in range(len(by))),
                quantities={
                    meter: total
                    for meter in METERS
                    if (total := (found[high(meter)] << LOW_BITS) + found[meter])
                },
                records=int(row.lines),
                first_ms=row.first_ms,
                last_ms=row.last_ms,
                estimated=row.estimated,
                unsupported=row.unsupported,
            )


def _is_of(one: Waiting) -> ColumnElement[bool]:
    records = usage_records.c
    return and_(
        records.host_id == one.host_id,
        records.boot_id == one.boot_id,
        records.epoch == one.epoch,
        records.sequence >= one.first,
        records.sequence <= one.last,
    )


def _source(part: Part) -> tuple[Any, ColumnElement[Any], list[ColumnElement[bool]]]:
    """The table of a part, the time in it by which a line counts, and what limits it."""
    if part.source == "daily":
        day_ms = usage_daily.c.day_ms
        return usage_daily, day_ms, [day_ms >= part.since_ms, day_ms < part.until_ms]
    if part.source == "hourly":
        hour_ms = usage_hourly.c.hour_ms
        return usage_hourly, hour_ms, [hour_ms >= part.since_ms, hour_ms < part.until_ms]
    records = usage_records.c
    limits: list[ColumnElement[bool]] = [
        records.end_ms > part.since_ms,
        records.end_ms <= part.until_ms,
        records.day >= part.since_ms // DAY_MS,
        records.day <= part.until_ms // DAY_MS,
    ]
    return usage_records, records.end_ms - 1, limits


def _column(table: Any, name: str, time_ms: ColumnElement[Any]) -> ColumnElement[Any]:
    if name in _OWNER:
        return _OWNER[name]
    if name in _SCOPE:
        return _SCOPE[name]
    if name in TIMES:
        return time_ms.self_group() - time_ms.self_group() % literal(TIMES[name], BigInteger)
    if name in _PROCESS:
        column = _PROCESS[name]
        return table.c[column] if column in table.c else literal(0, BigInteger)
    return named(table.c[_OWN[name]])
