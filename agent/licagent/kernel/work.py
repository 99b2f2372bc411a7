# SPDX-License-Identifier: Apache-2.0
"""The `work` table: CPU time, storage input and output and memory, sheet by sheet."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Final

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.layout import Owner
from licagent.kernel.maps import Map
from licagent.kernel.usage import Who, WorkRow

_KEY: Final = struct.Struct("=I 44s")
"""Sheet, and the beginning of an owner."""
_VALUE: Final = struct.Struct("=QQQQQ I 20s")
"""Amounts, and the end of an owner."""
_OWNER: Final = struct.Struct("=I QQQ IIII I 16s")
"""Of a key and a value: path, start, cgroup, inode, device, pid, uid, gid, digest, name."""
_MADE: Final = tuple.__new__
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
        self._owners: dict[bytes, Who] = {}
        """Of that sheet, by what the kernel has of them."""
        self._names: dict[bytes, str] = {}

    def read(self, number: int) -> tuple[tuple[WorkRow, ...], WorkRow | None]:
        """The lines of a sheet, and what was counted while the table was full."""
        rows: list[WorkRow] = []
        of_sheet: list[bytes] = []
        raws: list[bytes] = []
        owners: list[Who] = []
        for keys, values, heads in self._of_sheet(number):
            of_sheet.append(keys)
            # Whole columns at a time: of 10,000 rows each step in Python would count.
            *amounts, tails = zip(*_VALUE.iter_unpack(values), strict=True)
            batch = [head + tail for head, tail in zip(heads, tails, strict=True)]
            known = self._owners.get
            whos = [known(raw) or self._owner(raw) for raw in batch]
            raws += batch
            owners += whos
            rows += map(_MADE, repeat(WorkRow), zip(whos, *amounts, strict=True))
        self._keys = (number, b"".join(of_sheet))
        # Who lives has a line in most sheets: those of this one are likely to come again.
        self._owners = dict(zip(raws, owners, strict=True))
        return tuple(rows), self._read_spilled(number)

    def _of_sheet(self, number: int) -> Iterator[tuple[bytes, bytes, Sequence[bytes]]]:
        """Keys and values of a sheet's lines, many at a time, and what a key says of an owner."""
        size, value_size = _KEY.size, _VALUE.size
        for keys, values, count in self._work.batches():
            if not count:
                continue
            sheets, heads = zip(*_KEY.iter_unpack(keys), strict=True)
            theirs = sheets.count(number)
            if theirs == count:
                yield keys, values, heads
            elif theirs:
                places = [place for place, sheet in enumerate(sheets) if sheet == number]
                yield (
                    b"".join(keys[at * size : (at + 1) * size] for at in places),
                    b"".join(values[at * value_size : (at + 1) * value_size] for at in places),
                    [heads[at] for at in places],
                )

    def _owner(self, raw: bytes) -> Who:
        path, start_ns, cgroup, inode, device, pid, uid, gid, digest, comm = _OWNER.unpack(raw)
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
        return WorkRow(_NOBODY, *_VALUE.unpack(value)[:-1])

    def discard(self, number: int) -> None:
        """Remove the lines of a closed sheet. Idempotent."""
        known, keys = self._keys
        if known != number:
            keys = b"".join(theirs for theirs, _values, _heads in self._of_sheet(number))
        self._work.delete_packed(keys)
        self._keys = (0, b"")
        self._spilled.update(_U32.pack(number & 1), bytes(_VALUE.size))

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
