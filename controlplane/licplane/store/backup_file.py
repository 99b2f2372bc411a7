# SPDX-License-Identifier: Apache-2.0
"""A backup's file: lines of JSON, compressed, that end with their own count and SHA-256.

The first line says what it is; then for each table its name and columns, and its rows; the last
line is missing in a file that was cut off. Bytes are base64. Private keys are in it as they are
in the database: encrypted under the passphrase.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from licplane.errors import ExitCode, PlaneError
from licplane.store.folder import PRIVATE_MODE, sync_folder

FORMAT: Final = "licplane-backup"
VERSION: Final = 1
_LINE_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TableRows:
    """One table of a backup. `rows` must be read to its end before the next table."""

    name: str
    columns: tuple[str, ...]
    rows: Iterator[Sequence[Any]]


def write_backup(
    path: Path,
    header: Mapping[str, Any],
    tables: Iterator[tuple[str, Sequence[str], Iterator[Sequence[Any]]]],
) -> dict[str, int]:
    """Write a whole backup, durable when this returns; rows by table. Nothing, if it fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, PRIVATE_MODE)
    try:
        counts: dict[str, int] = {}
        with os.fdopen(descriptor, "wb") as file:
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                digest = hashlib.sha256()

                def put(value: object) -> None:
                    line = json.dumps(value, separators=(",", ":"), default=_text).encode() + b"\n"
                    digest.update(line)
                    packed.write(line)

                put({"format": FORMAT, "version": VERSION, **header})
                for name, columns, rows in tables:
                    put({"table": name, "columns": list(columns)})
                    counts[name] = 0
                    for row in rows:
                        put(list(row))
                        counts[name] += 1
                end = {"end": counts, "sha256": digest.hexdigest()}
                packed.write(json.dumps(end, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return counts


class BackupReader:
    """Reads a backup once, from its beginning to its end. Raises PlaneError where it is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: gzip.GzipFile | None = None
        self._digest = hashlib.sha256()
        self.counts: dict[str, int] = {}
        self.header: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        """Open it and read what it is."""
        try:
            self._file = file = gzip.GzipFile(self._path, "rb")
        except FileNotFoundError as error:
            raise PlaneError(
                ExitCode.NOT_FOUND, f"There is no file {self._path}", "Name a backup"
            ) from error
        try:
            header = self._line()
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise self.damaged("it is no backup of licplane")
            if header.get("version") != VERSION:
                raise PlaneError(
                    ExitCode.REFUSED,
                    f"{self._path} is a backup of a newer licplane",
                    "Use the licplane that made it, or a newer one",
                )
            self.header = header
        except BaseException:
            file.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()

    def tables(self) -> Iterator[TableRows]:
        """Each table; at the end counts and digest were compared."""
        pending = self._line()
        while isinstance(pending, dict) and "table" in pending:
            name, columns = str(pending["table"]), tuple(map(str, pending["columns"]))
            following: list[Any] = []
            yield TableRows(name, columns, self._rows(name, len(columns), following))
            if not following:
                raise RuntimeError(f"the rows of {name} were not read")
            pending = following[0]
        if not isinstance(pending, dict) or "end" not in pending:
            raise self.damaged("it does not end as one")
        if pending["end"] != self.counts:
            raise self.damaged("rows are missing")
        if pending.get("sha256") != self._before:
            raise self.damaged("its bytes are not those that were written")

    def damaged(self, why: str) -> PlaneError:
        """The error for a file that cannot be relied on."""
        return PlaneError(ExitCode.REFUSED, f"{self._path} is damaged: {why}", "Use another backup")

    def _rows(self, name: str, width: int, following: list[Any]) -> Iterator[Sequence[Any]]:
        self.counts[name] = 0
        while isinstance(row := self._line(), list):
            if len(row) != width:
                raise self.damaged(f"a row of {name} has {len(row)} values")
            self.counts[name] += 1
            yield [_value(one) for one in row]
        following.append(row)

    def _line(self) -> Any:
        self._before = self._digest.hexdigest()
        try:
            line = self._file.readline(_LINE_MAX) if self._file is not None else b""
        except (OSError, EOFError, zlib.error) as error:
            raise self.damaged(str(error) or type(error).__name__) from error
        if not line.endswith(b"\n"):
            raise self.damaged("it was cut off")
        self._digest.update(line)
        try:
            return json.loads(line)
        except ValueError as error:
            raise self.damaged("a line is no JSON") from error


def _text(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b": base64.b64encode(bytes(value)).decode()}
    raise TypeError(f"{type(value).__name__} has no place in a backup")


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["b"])
    return value
