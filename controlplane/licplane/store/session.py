# SPDX-License-Identifier: Apache-2.0
"""What reading and writing share: statements run on one connection, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Column, Connection, Executable, Row, Select, Table
from sqlalchemy.dialects import postgresql, sqlite

from licplane.errors import ExitCode, PlaneError
from licplane.store.catalog_model import Scope
from licplane.store.history import History, history_of
from lictoken.sealed import Seal

CHUNK: Final = 500
"""Values of one IN list; SQLite before 3.32 takes 999 parameters in a statement."""

Made = TypeVar("Made")

Values = dict[str, Any]
"""A row to write, by column."""


class Session:
    """One connection in one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def history(self) -> History:
        """Which history of the database this transaction is of; None where there is but one."""
        return history_of(self._connection.info)

    def _all(self, statement: Executable) -> Sequence[Row[Any]]:
        return self._connection.execute(statement).all()

    def _one(self, statement: Executable) -> Row[Any] | None:
        return self._connection.execute(statement).one_or_none()

    def _run(self, statement: Executable) -> int:
        """Run a change; how many rows it touched."""
        return self._connection.execute(statement).rowcount

    def _put(
        self,
        table: Table,
        rows: Sequence[Values],
        *,
        newer: Column[Any] | None = None,
        skip: bool = False,
    ) -> int:
        """Insert rows or replace those of their primary keys; how many rows that touched.

        With `newer` a row is replaced only by one that is not lower in that column; with `skip`
        a row that is there stays. The count is exact for one row, and an upper bound for more.
        """
        if not rows:
            return 0
        postgres = self._connection.dialect.name == "postgresql"
        insert = postgresql.insert(table) if postgres else sqlite.insert(table)
        keys = [column.name for column in table.primary_key]
        if skip:
            statement = insert.on_conflict_do_nothing(index_elements=keys)
        else:
            new = {name: insert.excluded[name] for name in rows[0] if name not in keys}
            where = None if newer is None else insert.excluded[newer.name] >= newer
            statement = insert.on_conflict_do_update(index_elements=keys, set_=new, where=where)
        if len(rows) == 1:
            # Without this option SQLAlchemy tells the count of an INSERT on some drivers only.
            counted = statement.values(rows[0]).execution_options(preserve_rowcount=True)
            return self._connection.execute(counted).rowcount
        self._connection.execute(statement, list(rows))
        return len(rows)


def paged(statement: Select[Any], key: Column[Any], after: object, limit: int) -> Select[Any]:
    """The page of `statement` behind `after` (empty or 0: the first), in the order of `key`."""
    if after:
        statement = statement.where(key > after)
    statement = statement.order_by(key)
    return statement.limit(limit) if limit else statement


def chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Parts that fit an IN list."""
    for at in range(0, len(values), CHUNK):
        yield values[at : at + CHUNK]


def blob(value: object) -> bytes:
    """The bytes in a column. SQLite gives back whatever somebody put there."""
    if not isinstance(value, bytes):
        raise TypeError(f"bytes are wanted, not {type(value).__name__}")
    return value


def checked(convert: Callable[[Row[Any]], Made]) -> Callable[[Row[Any]], Made]:
    """A conversion of rows that raises PlaneError INTERNAL for what no program of ours wrote."""

    def converted(row: Row[Any]) -> Made:
        try:
            return convert(row)
        except (TypeError, ValueError, KeyError) as error:
            raise inconsistent(f"a row of it makes no sense ({error})") from error

    return converted


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def labels_from(text: str) -> Mapping[str, str]:
    """The labels in a column."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("labels are an object")
    return cast("dict[str, str]", value)


@lru_cache(maxsize=4096)
def scope_text(scope: Scope) -> str:
    """A scope as a column holds it: one text for each scope."""
    return canonical([scope.org, scope.project, list(scope.environments), list(scope.regions)])


@lru_cache(maxsize=4096)
def scope_from(text: str) -> Scope:
    """The scope in a column."""
    org, project, environments, regions = json.loads(text)
    if not isinstance(org, str) or not isinstance(project, str):
        raise TypeError("names are text")
    return Scope(org, project, tuple(environments), tuple(regions))


def seal_from(payload: bytes | None, kid: str | None, signature: bytes | None) -> Seal | None:
    """The seal in three columns, or None."""
    if payload is None or kid is None or signature is None:
        return None
    return Seal(payload, kid, signature)


def inconsistent(what: str) -> PlaneError:
    """The error for a database that contradicts itself."""
    return PlaneError(
        ExitCode.INTERNAL,
        f"The database contradicts itself: {what}",
        "It was altered or damaged: stop licplane and restore a backup",
    )
