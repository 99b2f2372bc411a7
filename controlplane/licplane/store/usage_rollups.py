# SPDX-License-Identifier: Apache-2.0
"""Adding records up into hours and days, each record once.

`usage_pending` has a row for each batch that no rollup has counted. Its rows go in the transaction
that adds the batch's records, so that a crash before the commit leaves both as they were. All who
change rollups or bills take the lock of the one row of `usage_work` first: what a bill reads does
not move while it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Subquery,
    Table,
    and_,
    case,
    cast,
    delete,
    func,
    literal,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.base import ColumnCollection

from licplane.store.money_schema import (
    LOW_BITS,
    METERS,
    high,
    usage_daily,
    usage_hourly,
    usage_rolled,
    usage_work,
)
from licplane.store.session import Session
from licplane.store.usage_schema import usage_pending, usage_records

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
LOW_MASK: Final = (1 << LOW_BITS) - 1
_CHAINS_AT_ONCE: Final = 64
_SAME: Final = (
    "host_id",
    "owner_id",
    "scope_id",
    "kind",
    "license",
    "resource",
    "binding",
    "protocol",
    "loopback",
)
_PROCESS: Final = ("pid", "process_start_ms")
_CUT: Final = ("license", "resource", "binding")
_CUT_CHARACTERS: Final = 128
"""No name of ours is longer. What a host made up is cut, so that it fits into an index."""


@dataclass(frozen=True, slots=True)
class UsageWork:
    """The state of the regular work on usage."""

    leader: str
    leader_until_unix_ms: int
    kept_until_ms: int  # records that ended before were deleted
    hourly_kept_until_ms: int
    daily_kept_until_ms: int


@dataclass(frozen=True, slots=True)
class Position:
    """How far the records of an epoch are in the rollups."""

    host_id: str
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Batches of one chain and boot that wait to be counted."""

    host_id: str
    epoch: int
    boot_id: str
    first: int
    last: int
    start_ms: int
    end_ms: int


class RollupReads(Session):
    """Reading how far the rollups are."""

    def usage_work(self) -> UsageWork:
        """The one row."""
        row = self._one(select(usage_work))
        if row is None:
            return UsageWork("", 0, 0, 0, 0)
        return UsageWork(*(getattr(row, name) for name in UsageWork.__slots__))

    def rolled_positions(self) -> tuple[Position, ...]:
        """How far each epoch is, by host and epoch."""
        order = (usage_rolled.c.host_id, usage_rolled.c.epoch)
        rows = self._all(select(usage_rolled).order_by(*order))
        return tuple(Position(row.host_id, row.epoch, row.sequence) for row in rows)

    def pending_batches(self) -> int:
        """Batches that are stored and in no rollup yet."""
        return self._connection.scalar(select(func.count()).select_from(usage_pending)) or 0

    def waiting(self, limit: int = 0) -> list[Waiting]:
        """Batches that no rollup has counted, by chain and boot; at most `limit` of those."""
        chain = (usage_pending.c.host_id, usage_pending.c.epoch, usage_pending.c.boot_id)
        statement = (
            select(
                *chain,
                func.min(usage_pending.c.first_sequence).label("first"),
                func.max(usage_pending.c.last_sequence).label("last"),
                func.min(usage_pending.c.start_ms).label("start_ms"),
                func.max(usage_pending.c.end_ms).label("end_ms"),
            )
            .group_by(*chain)
            # Boots of an epoch follow one another: the lower sequences are counted first.
            .order_by(usage_pending.c.host_id, usage_pending.c.epoch, "first")
        )
        return [
            Waiting(
                row.host_id, row.epoch, row.boot_id, row.first, row.last, row.start_ms, row.end_ms
            )
            for row in self._all(statement.limit(limit) if limit else statement)
        ]


class RollupRecords(RollupReads):
    """Adding up."""

    def lock_usage(self) -> UsageWork:
        """Until this transaction ends, nobody else changes rollups or bills."""
        self._all(select(usage_work.c.id).with_for_update())
        return self.usage_work()

    def take_lead(self, name: str, now_ms: int, until_ms: int) -> bool:
        """Whether `name` does the regular work until then: it did, or nobody does."""
        changed = self._run(
            update(usage_work)
            .where((usage_work.c.leader == name) | (usage_work.c.leader_until_unix_ms <= now_ms))
            .values(leader=name, leader_until_unix_ms=until_ms)
        )
        return changed > 0

    def note_kept(self, *, records_ms: int = 0, hourly_ms: int = 0, daily_ms: int = 0) -> None:
        """Remember from when on records and rollups are kept; a bound never goes back."""
        now = self.lock_usage()
        self._run(
            update(usage_work).values(
                kept_until_ms=max(now.kept_until_ms, records_ms),
                hourly_kept_until_ms=max(now.hourly_kept_until_ms, hourly_ms),
                daily_kept_until_ms=max(now.daily_kept_until_ms, daily_ms),
            )
        )

    def purge_rollups(self, *, hourly_before_ms: int, daily_before_ms: int) -> int:
        """Delete hours and days that began before; how many rows went."""
        gone = self._run(delete(usage_hourly).where(usage_hourly.c.hour_ms < hourly_before_ms))
        return gone + self._run(delete(usage_daily).where(usage_daily.c.day_ms < daily_before_ms))

    def roll_up(self, limit: int = _CHAINS_AT_ONCE) -> int | None:
        """Count waiting batches of up to `limit` chains; the start of the earliest record in them.

        To be repeated until it answers None: nothing waits. The caller holds `lock_usage`.
        """
        waiting = self.waiting(limit)
        for one in waiting:
            self._count(usage_hourly, one, "hour_ms", HOUR_MS, _PROCESS)
            self._count(usage_daily, one, "day_ms", DAY_MS, ())
            self._run(delete(usage_pending).where(_is_in(one)))
            self._put(
                usage_rolled,
                [{"host_id": one.host_id, "epoch": one.epoch, "sequence": one.last}],
                newer=usage_rolled.c.sequence,
            )
        return min((one.start_ms for one in waiting), default=None)

    def _count(
        self, table: Table, waiting: Waiting, time: str, step_ms: int, more: Sequence[str]
    ) -> None:
        same = (*_SAME, *more)
        lines = _lines(waiting, step_ms, time, same).c
        group = [lines[name] for name in (time, *same)]
        is_postgres = self._connection.dialect.name == "postgresql"
        values = _aggregates(lines, is_postgres=is_postgres)
        chosen = select(*group, *(one.label(name) for name, one in values.items()))
        # SQLite takes ON for a join's where a SELECT has no WHERE.
        chosen = chosen.where(true()).group_by(*group)
        insert = postgresql.insert(table) if is_postgres else sqlite.insert(table)
        adding = insert.from_select([time, *same, *values], chosen)
        self._connection.execute(
            adding.on_conflict_do_update(
                index_elements=[time, *same], set_=_added(table, insert.excluded)
            )
        )


def _is_in(one: Waiting) -> ColumnElement[bool]:
    columns = usage_pending.c
    return and_(
        columns.host_id == one.host_id,
        columns.epoch == one.epoch,
        columns.boot_id == one.boot_id,
        columns.last_sequence <= one.last,
    )


def _lines(one: Waiting, step_ms: int, time: str, same: Sequence[str]) -> Subquery:
    """The waiting records, each with the hour or day in which its last millisecond is."""
    records = usage_records.c
    last_ms = records.end_ms - 1
    used = ("start_ms", "end_ms", "estimated", "unsupported", *METERS)
    return (
        select(
            (last_ms - last_ms.self_group() % literal(step_ms, BigInteger)).label(time),
            *(named(records[name]) for name in same),
            *(records[name] for name in used),
        )
        .where(
            records.host_id == one.host_id,
            records.boot_id == one.boot_id,
            records.epoch == one.epoch,
            records.sequence >= one.first,
            records.sequence <= one.last,
            records.day >= one.start_ms // DAY_MS,
            records.day <= one.end_ms // DAY_MS,
        )
        .subquery()
    )


def named(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column of records as the rollups have it."""
    name = str(column.key)
    return func.substr(column, 1, _CUT_CHARACTERS).label(name) if name in _CUT else column


def _aggregates(
    lines: ColumnCollection[str, Any], *, is_postgres: bool
) -> dict[str, ColumnElement[Any]]:
    """Each column of a rollup, from those of the records."""
    found: dict[str, ColumnElement[Any]] = {
        "records": func.count(),
        "first_ms": func.min(lines["start_ms"]),
        "last_ms": func.max(lines["end_ms"]),
        "estimated": func.bit_or(lines["estimated"]),
        "unsupported": func.bit_or(lines["unsupported"]),
    }
    for meter in METERS:
        low, upper = halves(lines[meter], is_postgres=is_postgres)
        found[meter] = low.op("&")(literal(LOW_MASK, BigInteger))
        found[high(meter)] = upper + low.op(">>")(literal(LOW_BITS))
    return found


def halves(
    column: ColumnElement[Any], *, is_postgres: bool
) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Sums of the lower and of the upper parts, to be taken together by `low + (upper << 40)`:
    neither is too large for a whole number. PostgreSQL adds whole numbers up as long ones, which
    is quicker than to take each apart."""
    if is_postgres:
        total = func.sum(column)
        step: ColumnElement[Any] = literal_column(str(LOW_MASK + 1))
        return cast(func.mod(total, step), BigInteger), cast(func.div(total, step), BigInteger)
    low = column.op("&")(literal(LOW_MASK, BigInteger))
    return func.sum(low), func.sum(column.op(">>")(literal(LOW_BITS)))


def _added(table: Table, new: ColumnCollection[str, Any]) -> dict[str, ColumnElement[Any]]:
    """A row of a rollup and what comes to it."""
    now = table.c
    found: dict[str, ColumnElement[Any]] = {
        "records": now.records + new["records"],
        "first_ms": case((now.first_ms <= new["first_ms"], now.first_ms), else_=new["first_ms"]),
        "last_ms": case((now.last_ms >= new["last_ms"], now.last_ms), else_=new["last_ms"]),
        "estimated": now.estimated.op("|")(new["estimated"]),
        "unsupported": now.unsupported.op("|")(new["unsupported"]),
    }
    for meter in METERS:
        low = (now[meter] + new[meter]).self_group()
        upper = now[high(meter)] + new[high(meter)]
        found[meter] = low.op("&")(literal(LOW_MASK, BigInteger))
        found[high(meter)] = upper + low.op(">>")(literal(LOW_BITS))
    return found
