# SPDX-License-Identifier: Apache-2.0
"""The `work` table: CPU time, storage input and output and memory, sheet by sheet."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain
from operator import concat
from pathlib import Path
from typing import Any, Final

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.maps import Map
from licagent.kernel.usage import Who, WorkRow, WorkRows
from licagent.kernel.usage_structs import Owner

_HEAD: Final = struct.Struct("=4x 44s")
"""Of a key, behind its sheet: the beginning of an owner."""
_TAIL: Final = struct.Struct("=44x 20s")
"""Of a value, behind the amounts: the end of an owner."""
_OWNER: Final = struct.Struct("=I QQQ IIII I 16s")
"""Both: path, start, cgroup, inode, device, pid, uid, gid, digest, name."""
_AMOUNTS: Final = struct.Struct("=QQQQQ I 20x")
_KEY_BYTES: Final = _HEAD.size
_VALUE_BYTES: Final = _AMOUNTS.size
_JOIN: Final[Any] = concat
"""Of bytes."""
_U32: Final = struct.Struct("=I")
_NAMES_MAX: Final = 4096
_NOBODY: Final = Who(0, 0, 0, 0, 0, 0, 0, 0, 0, "")


class WorkTable:
    """`work` and `spilled_work`."""

    def __init__(self, pins: PinFolder) -> None:
        self._work = Map(pins.maps / "work")
        self._spilled = Map(pins.maps / "spilled_work")
        self._accounts = Map(pins.maps / "accounts")
        self._keys: tuple[int, bytes] = (0, b"")
        """Of the sheet that was read last, one after the other."""
        self._names: dict[bytes, str] = {}

    def read(self, number: int) -> tuple[WorkRows, WorkRow | None]:
        """The lines of a sheet, and what was counted while the table was full."""
        of_sheet: list[bytes] = []
        owners: list[bytes] = []
        amounts: list[tuple[int, int, int, int, int, int]] = []
        for keys, values in self._of_sheet(number):
            of_sheet.append(keys)
            # Whole columns at a time: of 10,000 rows each step in Python would count.
            heads: Iterator[bytes] = chain.from_iterable(_HEAD.iter_unpack(keys))
            tails: Iterator[bytes] = chain.from_iterable(_TAIL.iter_unpack(values))
            owners += map(_JOIN, heads, tails)
            amounts += _AMOUNTS.iter_unpack(values)
        self._keys = (number, b"".join(of_sheet))
        return WorkRows(owners, amounts, self._who), self._read_spilled(number)

    def _of_sheet(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a sheet's lines, many at a time."""
        size, value_size = _KEY_BYTES, _VALUE_BYTES
        for keys, values, count in self._work.batches():
            sheets = memoryview(keys).cast("I")[:: size // _U32.size].tolist()
            theirs = sheets.count(number)
            if theirs and theirs == count:
                yield keys, values
            elif theirs:
                places = [place for place, sheet in enumerate(sheets) if sheet == number]
                yield (
                    b"".join(keys[at * size : (at + 1) * size] for at in places),
                    b"".join(values[at * value_size : (at + 1) * value_size] for at in places),
                )

    def _who(self, owner: bytes) -> Who:
        path, start_ns, cgroup, inode, device, pid, uid, gid, digest, comm = _OWNER.unpack(owner)
        # Names repeat: 10,000 processes run a few hundred programs.
        name = self._names.get(comm) or self._name(comm)
        return Who(pid, start_ns, uid, gid, cgroup, device, inode, path, digest, name)

    def _name(self, comm: bytes) -> str:
        if len(self._names) >= _NAMES_MAX:
            self._names.clear()
        return self._names.setdefault(comm, _text(comm))

    def _read_spilled(self, number: int) -> WorkRow | None:
        value = self._spilled.lookup(_U32.pack(number & 1))
        if value is None or not any(value):
            return None
        return WorkRow(_NOBODY, *_AMOUNTS.unpack(value))

    def discard(self, number: int) -> None:
        """Remove the lines of a closed sheet. Idempotent."""
        known, keys = self._keys
        if known != number:
            keys = b"".join(theirs for theirs, _values in self._of_sheet(number))
        self._work.delete_packed(keys)
        self._keys = (0, b"")
        self._spilled.update(_U32.pack(number & 1), bytes(_VALUE_BYTES))

    def clear_accounts(self) -> None:
        """Forget all processes; nothing may be metered now."""
        self._accounts.delete_many(list(self._accounts.keys()))

    def sweep(self) -> int:
        """Drop the accounts of processes that are gone; how many there were.

        A process takes its account with it. This is for those whose end no program saw: while
        others were attached, or where the kernel does not run them.
        """
        gone = []
        for key, value in self._accounts.items():
            pid = Owner.from_buffer_copy(value).pid
            if not Path(f"/proc/{pid}").exists():
                gone.append((key, value))
        # Its address may be another process's by now: then something of the account differs.
        return sum(
            self._accounts.delete(key) for key, value in gone if self._accounts.lookup(key) == value
        )

    def close(self) -> None:
        """Close the maps."""
        self._work.close()
        self._spilled.close()
        self._accounts.close()


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode(errors="backslashreplace")
