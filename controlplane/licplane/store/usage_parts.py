# SPDX-License-Identifier: Apache-2.0
"""The parts of usage_records on PostgreSQL: one for each day, and one for days without a part.

A part is made before the first row of its day comes. Where that cannot be done in time, rows go to
the default part and are moved when it is made: no usage waits for it, and none is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import text

from licplane.store.session import Session
from licplane.store.usage_model import DAY_MS

_PREFIX: Final = "usage_records_"
_LOCK: Final = 0x6C69637061727473  # "licparts"
_WAIT_MS: Final = 2_000
_DAY_MAX: Final = 2_932_896  # 9999-12-31


class UsageParts(Session):
    """Making, listing and dropping parts; on SQLite there are none."""

    def make_parts(self, days: Iterable[int]) -> None:
        """Make the parts of these days (days since 1970) that are not there.

        Raises PlaneError BUSY (through the store) when somebody reads the default part for longer
        than two seconds.
        """
        if self._connection.dialect.name != "postgresql":
            return
        self._connection.execute(text(f"SET LOCAL lock_timeout = {_WAIT_MS}"))
        self._connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        present = set(self.parts())
        for day in sorted(set(days)):
            if day not in present and 0 <= day <= _DAY_MAX:
                self._make(day)

    def parts(self) -> tuple[int, ...]:
        """The days that have a part."""
        if self._connection.dialect.name != "postgresql":
            return ()
        names = self._connection.scalars(
            text(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " WHERE i.inhparent = 'usage_records'::regclass"
            )
        )
        found = (name.removeprefix(_PREFIX) for name in names)
        return tuple(sorted(_day_of(digits) for digits in found if digits.isdigit()))

    def drop_parts(self, before_day: int) -> int:
        """Drop the parts of days before this one, with their rows; how many."""
        old = [day for day in self.parts() if day < before_day]
        for day in old:
            self._connection.execute(text(f"DROP TABLE {part_name(day)}"))
        return len(old)

    def _make(self, day: int) -> None:
        name = part_name(day)
        run = self._connection.execute
        run(text(f"CREATE TABLE {name} (LIKE usage_records INCLUDING ALL)"))
        run(
            text(  # the name is made of digits
                f"WITH moved AS (DELETE FROM usage_records_default WHERE day = :day RETURNING *)"  # noqa: S608
                f" INSERT INTO {name} SELECT * FROM moved"
            ),
            {"day": day},
        )
        run(
            text(
                f"ALTER TABLE usage_records ATTACH PARTITION {name}"
                f" FOR VALUES FROM ({day}) TO ({day + 1})"
            )
        )


def part_name(day: int) -> str:
    """usage_records_20261122."""
    return f"{_PREFIX}{datetime.fromtimestamp(day * DAY_MS / 1000, UTC):%Y%m%d}"


def _day_of(digits: str) -> int:
    at = datetime.strptime(digits, "%Y%m%d").replace(tzinfo=UTC)
    return int(at.timestamp()) * 1000 // DAY_MS
