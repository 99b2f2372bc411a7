# SPDX-License-Identifier: Apache-2.0
"""All rows of the database, table by table: for a copy that either database can take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from sqlalchemy import MetaData, Table, select
from sqlalchemy.exc import NoSuchTableError

from licplane.errors import ExitCode, PlaneError
from licplane.store.schema import metadata
from licplane.store.session import Session
from licplane.store.usage_parts import UsageParts

_ROWS: Final = 500
_PARTED: Final = "usage_records"
"""On PostgreSQL it has a part for each day; rows go to the default part where there is none."""

Row = Sequence[Any]


class CopyReads(Session):
    """Reading whole tables. In one Reader they are of one moment."""

    def tables(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each table and its columns; what a row refers to comes before it."""
        return tuple(
            (table.name, tuple(column.name for column in table.columns))
            for table in metadata.sorted_tables
        )

    def rows(self, table: str) -> Iterator[Row]:
        """All rows of a table, as Python values, in the order of `tables`' columns."""
        found = metadata.tables[table]
        statement = select(found).execution_options(yield_per=_ROWS)
        for row in self._connection.execute(statement):
            yield tuple(row)


class CopyWrites(UsageParts):
    """Filling a database that was made a moment ago."""

    def empty_tables(self) -> None:
        """Take out what making the schema put there."""
        for table in reversed(self._reflected().sorted_tables):
            if table.name in metadata.tables:
                self._connection.execute(table.delete())

    def put_rows(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> int:
        """Insert rows of a table; how many. Raises PlaneError where the schema has no place."""
        found = self._table(table)
        missing = [name for name in columns if name not in found.columns]
        if missing:
            raise PlaneError(
                ExitCode.REFUSED,
                f"The schema has no column {table}.{missing[0]}",
                "Use the licplane that made the copy, or a newer one",
            )
        count = 0
        source = iter(rows)
        while part := list(islice(source, _ROWS)):
            values = [dict(zip(columns, row, strict=True)) for row in part]
            if table == _PARTED:
                self.make_parts({int(row["day"]) for row in values if "day" in row})
            self._connection.execute(found.insert(), values)
            count += len(part)
        return count

    def end_entrances(self, now_ms: int) -> None:
        """Delete all join tokens, and revoke the administrators' credentials that still count.

        Also in an older schema; certificates of administrators are revoked as certificates too.
        """
        admins, certificates = self._table("admins"), self._table("certificates")
        live = admins.c.revoked_at_unix_ms.is_(None)
        theirs = certificates.c.fingerprint.in_(select(admins.c.fingerprint).where(live))
        self._run(self._table("join_tokens").delete())
        for table, which in ((certificates, theirs), (admins, live)):
            ended = table.update().where(which, table.c.revoked_at_unix_ms.is_(None))
            self._run(ended.values(revoked_at_unix_ms=now_ms))

    def note(self, name: str, value: bytes) -> None:
        """Put a setting, also in an older schema; one of that name is replaced."""
        settings = self._table("settings")
        self._run(settings.delete().where(settings.c.name == name))
        self._run(settings.insert().values(name=name, value=value))

    def _reflected(self) -> MetaData:
        """The tables as they are: a copy may be of an older schema."""
        if not hasattr(self, "_kept_schema"):
            self._kept_schema = MetaData()
            self._kept_schema.reflect(
                self._connection, only=lambda name, _: name in metadata.tables
            )
        return self._kept_schema

    def _table(self, name: str) -> Table:
        try:
            return self._reflected().tables[name]
        except (KeyError, NoSuchTableError) as error:
            raise PlaneError(
                ExitCode.REFUSED,
                f"The schema has no table {name[:100]!r}",
                "Use the licplane that made the copy, or a newer one",
            ) from error
