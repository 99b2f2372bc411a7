# SPDX-License-Identifier: Apache-2.0
"""Owners and scopes: texts that many records share, each stored once and named by a number."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, Final, TypeVar

from sqlalchemy import Table, select
from sqlalchemy.dialects import postgresql, sqlite

from licplane.store.session import CHUNK, Session, Values, blob, canonical
from licplane.store.usage_model import Owner, UsageScope
from licplane.store.usage_schema import usage_owners, usage_scopes

_ID_BITS: Final = 62

Key = TypeVar("Key", bound=Hashable)


class UsageDimensions(Session):
    """Looking numbers up, and giving new ones."""

    def owner_ids(self, owners: Collection[Owner]) -> dict[Owner, int]:
        """The ids of these owners, made where there are none."""
        return self._ids(usage_owners, "owner", owners, _owner_row)

    def scope_id(self, scope: UsageScope) -> int:
        """The id of a scope, made where there is none."""
        return self._ids(usage_scopes, "scope", [scope], UsageScope._asdict)[scope]

    def _ids(
        self,
        table: Table,
        word: str,
        keys: Collection[Key],
        values: Callable[[Key], dict[str, Any]],
    ) -> dict[Key, int]:
        hashes = {_hash(key): key for key in keys}
        found = self._known_ids(table, word, hashes)
        # In one order everywhere, so that two who add the same wait for each other once.
        missing = sorted(one for one in hashes if one not in found)
        if missing:
            rows: list[Values] = [
                {
                    f"{word}_id": 1 + secrets.randbits(_ID_BITS),
                    f"{word}_hash": one,
                    **values(hashes[one]),
                }
                for one in missing
            ]
            postgres = self._connection.dialect.name == "postgresql"
            insert = postgresql.insert(table) if postgres else sqlite.insert(table)
            statement = insert.on_conflict_do_nothing(index_elements=[f"{word}_hash"])
            self._connection.execute(statement, rows)
            found |= self._known_ids(table, word, missing)
        return {key: found[one] for one, key in hashes.items()}

    def _known_ids(self, table: Table, word: str, hashes: Iterable[bytes]) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        wanted = list(hashes)
        id_column, hash_column = table.c[f"{word}_id"], table.c[f"{word}_hash"]
        for at in range(0, len(wanted), CHUNK):
            part = wanted[at : at + CHUNK]
            columns = (id_column.label("number"), hash_column.label("digest"))
            for row in self._all(select(*columns).where(hash_column.in_(part))):
                found[blob(row.digest)] = row.number
        return found


def _hash(key: Any) -> bytes:
    return hashlib.sha256(canonical(list(key)).encode()).digest()


def _owner_row(owner: Owner) -> dict[str, Any]:
    return {
        "unit": owner.unit,
        "cgroup": owner.cgroup,
        "user_name": owner.user,
        "uid_plus_one": owner.uid + 1,
        "executable": owner.executable,
    }
