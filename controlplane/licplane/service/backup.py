# SPDX-License-Identifier: Apache-2.0
"""Copies of the whole control plane, and what is not believed of one that was put back.

A copy knows nothing of what came after it: revocations, evictions, join tokens that were used up.
So a database that was put back gives no leases and lets nobody in until somebody has looked at it
(`licplane db advance`): no license is wider than before by it. Hosts are heard meanwhile, and what
they show of statements that the copy lacks is taken over (licplane.service.remembered).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from licapi.version import installed
from licplane.errors import ExitCode, PlaneError
from licplane.service.core import PUT_BACK_SETTING
from licplane.store.backup_file import BackupReader, write_backup
from licplane.store.database import Recorder, Store
from licplane.store.reader import Reader
from licplane.store.record_model import KeyKind
from lictoken.claims import U32_MAX

NUMBERS_BEYOND: Final = 100_000
"""Licenses that may have been issued after the copy was made; their numbers are not used again."""
GENERATIONS_BEYOND: Final = 1_000
"""Issues of and statements about one license after the copy was made; what is said of it next
must concern those issues too, and hosts take no generation older than theirs."""
_GENERATIONS_KEPT: Final = 1_000  # for what is still to be said of a license
_RAISED: Final = {
    "head": ("next_number", NUMBERS_BEYOND, U32_MAX + 1),
    "licenses": ("generation", GENERATIONS_BEYOND, U32_MAX - _GENERATIONS_KEPT),
}
"""What was used since the copy was made is not used again: table, column, by how much, until."""


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """What a backup is, as its first line and its end say."""

    created_unix_ms: int
    program: str  # version of the licplane that made it
    schema: str
    revision: int
    audit_sequence: int
    tables: dict[str, int]  # rows

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.tables.values())


def create_backup(store: Store, path: Path, now_ms: int) -> BackupInfo:
    """Write everything as it is at one moment; servers go on meanwhile. Needs no key."""
    store.check()
    with store.reading() as reader:
        head = reader.head()
        header = {
            "created_unix_ms": now_ms,
            "program": installed(),
            "schema": store.newest(),
            "revision": head.revision,
            "audit_sequence": head.audit_sequence,
            "keys": len(reader.keys(KeyKind.ISSUER)) + len(reader.keys(KeyKind.AUTHORITY)),
        }
        counts = write_backup(path, header, _tables(reader))
    return _info(header, counts)


def read_backup(path: Path) -> BackupInfo:
    """Read a backup to its end. Raises PlaneError REFUSED where it is damaged."""
    with BackupReader(path) as source:
        for table in source.tables():
            for _ in table.rows:
                pass
        return _info(source.header, source.counts)


def restore_backup(path: Path, store: Store, now_ms: int, *, untouched: bool = False) -> BackupInfo:
    """Put a backup into an empty database, and note that it is one that was put back.

    The schema is made as the backup has it, then brought up to date. The note comes in the same
    transaction as the rows. `untouched` leaves that note
    and all that goes with it out: for a scratch copy to look at. Raises PlaneError REFUSED where
    the database is not empty, or the file is damaged; nothing is put then.
    """
    info = read_backup(path)
    if store.current():
        raise PlaneError(
            ExitCode.REFUSED,
            "There is a database in this place already",
            "Move it away first (keep it: it may know more than the backup), or name another place",
        )
    store.upgrade(info.schema)
    with store.recording() as recorder, BackupReader(path) as source:
        recorder.empty_tables()
        for table in source.tables():
            rows: Iterator[Sequence[Any]] = table.rows
            if table.name in _RAISED and not untouched:
                rows = _raised(table.columns, rows, *_RAISED[table.name])
            recorder.put_rows(table.name, table.columns, rows)
        if not untouched:
            _distrust(recorder, info, now_ms)
    store.upgrade()
    return info


def scratch_copy(path: Path, folder: Path) -> Store:
    """A backup as a database of its own, to look at. The caller closes it."""
    store = Store.open(str(folder))
    try:
        restore_backup(path, store, 0, untouched=True)
    except BaseException:
        store.close()
        raise
    return store


def _distrust(recorder: Recorder, info: BackupInfo, now_ms: int) -> None:
    """End what lets somebody in: the copy does not know what of it was used or ended since.

    In the transaction of the rows: a restore that is cut off leaves no copy that is believed.
    """
    recorder.end_entrances(now_ms)
    note = {"at_unix_ms": now_ms, "made_unix_ms": info.created_unix_ms, "revision": info.revision}
    recorder.note(PUT_BACK_SETTING, json.dumps(note, sort_keys=True).encode())


def _raised(
    columns: Sequence[str], rows: Iterator[Sequence[Any]], column: str, by: int, most: int
) -> Iterator[Sequence[Any]]:
    at = list(columns).index(column)
    for row in rows:
        values = list(row)
        values[at] = max(int(values[at]), min(int(values[at]) + by, most))
        yield values


def _tables(reader: Reader) -> Iterator[tuple[str, Sequence[str], Iterator[Sequence[Any]]]]:
    for name, columns in reader.tables():
        yield name, columns, reader.rows(name)


def _info(header: Any, counts: dict[str, int]) -> BackupInfo:
    try:
        return BackupInfo(
            int(header["created_unix_ms"]),
            str(header["program"]),
            str(header["schema"]),
            int(header["revision"]),
            int(header["audit_sequence"]),
            dict(counts),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PlaneError(
            ExitCode.REFUSED, "The backup does not say what it is", "Use another one"
        ) from error
