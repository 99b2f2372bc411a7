# SPDX-License-Identifier: Apache-2.0
"""The control word: which policy generation is in force, and until when break-glass holds."""

from __future__ import annotations

from typing import Final, Protocol

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import Control
from licagent.kernel.maps import MappedArray

_U64: Final = 1 << 64


def _signed(word: int) -> int:
    return word - _U64 if word >= _U64 // 2 else word


class WallRecord(Protocol):
    """What was seen of the wall clock in this boot: licagent.daemon.exec_times."""

    def read(self) -> tuple[int, int, int] | None:
        """Its distance from CLOCK_BOOTTIME, the lowest ever, and since when not set forward."""
        ...

    def write(self, offset_ns: int, lowest_ns: int, since_ns: int) -> None:
        """Keep it, whatever becomes of the daemon."""
        ...


class ControlWord:
    """The `control` map, one element, by shared memory."""

    def __init__(self, pins: PinFolder) -> None:
        self._array: MappedArray[Control] = MappedArray(pins.maps / "control", Control)

    @property
    def generation(self) -> int:
        """Generation in force; 0 before the first policy."""
        return int(self._array[0].generation) & 0xFFFFFFFF

    def switch(self, generation: int, flags: int) -> None:
        """Put a generation in force, with its flags, in one store."""
        self._array[0].generation = flags << 32 | generation

    @property
    def break_glass_until_ns(self) -> int:
        """CLOCK_BOOTTIME before which nothing is denied; 0 for never."""
        return int(self._array[0].break_glass_until_ns)

    @break_glass_until_ns.setter
    def break_glass_until_ns(self, value: int) -> None:
        self._array[0].break_glass_until_ns = value

    @property
    def root_cgroup(self) -> int:
        """Id of the cgroup that is licensed."""
        return int(self._array[0].root_cgroup)

    @root_cgroup.setter
    def root_cgroup(self, value: int) -> None:
        self._array[0].root_cgroup = value

    @property
    def measure(self) -> bool:
        """Whether executables that were never measured are reported at exec."""
        return bool(self._array[0].measure)

    @measure.setter
    def measure(self, value: bool) -> None:
        self._array[0].measure = int(value)

    @property
    def sheet(self) -> int:
        """The sheet in which usage adds up; 0: nothing is metered."""
        return int(self._array[0].sheet)

    def open_sheet(self, number: int, page_bytes: int) -> None:
        """Let usage add up in another sheet from now on. One store."""
        self._array[0].page_bytes = page_bytes
        self._array[0].sheet = number

    def begin_metering(self, now_ns: int) -> None:
        """A new era, before its first sheet is opened: no mark of an earlier one holds."""
        self._array[0].metered_since_ns = now_ns
        self._array[0].era = (self._array[0].era + 1) & 0xFFFFFFFF

    @property
    def discarded_sheet(self) -> int:
        """The last sheet that was emptied."""
        return int(self._array[0].discarded)

    @discarded_sheet.setter
    def discarded_sheet(self, number: int) -> None:
        self._array[0].discarded = number

    def read(self) -> tuple[int, int, int] | None:
        """The daemon's record of the wall clock (WallRecord); None before the first."""
        word = self._array[0]
        held = (word.wall_offset_ns, word.wall_lowest_ns, word.wall_since_ns)
        return (_signed(held[0]), _signed(held[1]), int(held[2])) if any(held) else None

    def write(self, offset_ns: int, lowest_ns: int, since_ns: int) -> None:
        """Keep the record of the wall clock. Ended in between, it is stricter than before."""
        self._array[0].wall_lowest_ns = lowest_ns % _U64
        self._array[0].wall_since_ns = since_ns
        self._array[0].wall_offset_ns = offset_ns % _U64

    def close(self) -> None:
        """Unmap."""
        self._array.close()
