# SPDX-License-Identifier: Apache-2.0
"""The `work` table: CPU time, storage input and output and memory, sheet by sheet."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.layout import Owner
from licagent.kernel.maps import Map
from licagent.kernel.usage import Who, WorkRow

_KEY: Final = struct.Struct("=II QQQ IIII")
_VALUE: Final = struct.Struct("=QQQQQ II 16s")
_U32: Final = struct.Struct("=I")
_NAMES_MAX: Final = 4096
_NOBODY: Final = Who(0, 0, 0, 0, 0, 0, 0, 0, 0, "")


class WorkTable:
    """`work` and `spilled_work`."""

    def __init__(self, pins: PinFolder) -> None:
        self._work = Map(pins.maps / "work")
        self._spilled = Map(pins.maps / "spilled_work")
        self._accounts = Map(pins.maps / "accounts")
        self._keys: tuple[int, list[bytes]] = (0, [])
        self._names: dict[bytes, str] = {}

    def read(self, number: int) -> tuple[tuple[WorkRow, ...], WorkRow | None]:
        """The lines of a sheet, and what was counted while the table was full."""
        rows: list[WorkRow] = []
        of_sheet: list[bytes] = []
        for keys, values, _count in self._work.batches():
            at = 0
            for key, value in zip(_KEY.iter_unpack(keys), _VALUE.iter_unpack(values), strict=True):
                at += _KEY.size
                if key[0] != number:
                    continue
                of_sheet.append(keys[at - _KEY.size : at])
                _sheet, path, start_ns, cgroup, inode, device, pid, uid, gid = key
                comm = value[7].rstrip(b"\0")
                # Names repeat: 10,000 processes run a few hundred programs.
                name = self._names.get(comm) or self._name(comm)
                who = Who(pid, start_ns, uid, gid, cgroup, device, inode, path, value[6], name)
                rows.append(WorkRow(who, *value[:6]))
        self._keys = (number, of_sheet)
        return tuple(rows), self._read_spilled(number)

    def _name(self, comm: bytes) -> str:
        if len(self._names) >= _NAMES_MAX:
            self._names.clear()
        return self._names.setdefault(comm, _text(comm))

    def _read_spilled(self, number: int) -> WorkRow | None:
        value = self._spilled.lookup(_U32.pack(number & 1))
        if value is None or not any(value):
            return None
        cpu, read, written, cancelled, memory, ended, *_rest = _VALUE.unpack(value)
        return WorkRow(_NOBODY, cpu, read, written, cancelled, memory, ended)

    def discard(self, number: int) -> None:
        """Remove the lines of a closed sheet. Idempotent."""
        known, keys = self._keys
        if known != number:
            keys = [key for key in self._work.keys() if _U32.unpack_from(key)[0] == number]  # noqa: SIM118
        self._work.delete_many(keys)
        self._keys = (0, [])
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
