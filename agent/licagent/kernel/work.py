# SPDX-License-Identifier: Apache-2.0
"""The `work` table: CPU time, storage input and output and memory, sheet by sheet."""

from __future__ import annotations

import struct
from typing import Final

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.maps import Map
from licagent.kernel.usage import Who, WorkRow

_KEY: Final = struct.Struct("=II QQQ IIII")
_VALUE: Final = struct.Struct("=QQQQQ IIII 16s")
_U32: Final = struct.Struct("=I")
_NOBODY: Final = Who(0, 0, 0, 0, 0, 0, 0, 0, 0, "")


class WorkTable:
    """`work` and `spilled_work`."""

    def __init__(self, pins: PinFolder) -> None:
        self._work = Map(pins.maps / "work")
        self._spilled = Map(pins.maps / "spilled_work")
        self._keys: tuple[int, list[bytes]] = (0, [])

    def read(self, number: int) -> tuple[tuple[WorkRow, ...], WorkRow | None]:
        """The lines of a sheet, and what was counted while the table was full."""
        rows = []
        keys = []
        for key, value in self._work.items():
            (sheet, _reserved, start_ns, cgroup, inode, device, pid, uid, gid) = _KEY.unpack(key)
            if sheet != number:
                continue
            keys.append(key)
            cpu, read, written, cancelled, memory, ended, path, digest, _zero, comm = _VALUE.unpack(
                value
            )
            rows.append(
                WorkRow(
                    Who(pid, start_ns, uid, gid, cgroup, device, inode, path, digest, _text(comm)),
                    cpu,
                    read,
                    written,
                    cancelled,
                    memory,
                    ended,
                )
            )
        self._keys = (number, keys)
        return tuple(rows), self._read_spilled(number)

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

    def close(self) -> None:
        """Close the maps."""
        self._work.close()
        self._spilled.close()


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode(errors="backslashreplace")
