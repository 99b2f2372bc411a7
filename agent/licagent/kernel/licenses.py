# SPDX-License-Identifier: Apache-2.0
"""License slots in the kernel: who may, since when, until when, and in which epoch.

The table is shared memory: a revocation is two stores, seen by the next packet.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from licagent.domain.reason import Reason
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import License
from licagent.kernel.libbpf import BpfError
from licagent.kernel.maps import MappedArray
from licagent.kernel.numbers import NANOSECONDS_MAX

_SPARE: Final = 1024
"""Slots beyond the used ones that stay mapped."""
_RECORD: Final = struct.Struct("=IIIIQQ")


@dataclass(frozen=True, slots=True)
class Slot:
    """What one slot holds."""

    slot: int
    number: int
    epoch: int
    state: Reason
    not_before_ns: int  # CLOCK_BOOTTIME
    not_after_ns: int  # CLOCK_BOOTTIME
    end_reason: Reason = Reason.EXPIRED  # why it ends then


class LicenseTable:
    """The `licenses` map. Slots keep their place across restarts of the daemon."""

    def __init__(self, pins: PinFolder) -> None:
        self._array: MappedArray[License] = MappedArray(pins.maps / "licenses", License)
        self._slots: dict[int, int] = {}  # number -> slot
        self._free: list[int] = []
        self._end = 0  # slots from here on were never used
        for index, (number, epoch, *_rest) in enumerate(
            _RECORD.iter_unpack(self._array.snapshot(len(self._array)))
        ):
            if number:
                self._slots[number] = index
                self._end = index + 1
            elif epoch:
                self._free.append(index)
                self._end = index + 1
        self._array.keep(self._end + _SPARE)

    def __contains__(self, number: int) -> bool:
        return number in self._slots

    def numbers(self) -> tuple[int, ...]:
        """License numbers that have a slot."""
        return tuple(self._slots)

    def slot(self, number: int) -> int:
        """The slot of a license, a fresh one (granting nothing) if it had none.

        Raises:
            BpfError: ENOSPC when all slots are taken.
        """
        found = self._slots.get(number)
        if found is not None:
            return found
        if self._free:
            index = self._free.pop()
        elif self._end < len(self._array):
            index = self._end
            self._end += 1
        else:
            raise BpfError(errno.ENOSPC, f"all {len(self._array)} license slots are taken")
        element = self._array[index]
        element.state = int(Reason.REVOKED)
        element.epoch += 1  # tags of whoever had this slot before are dead
        element.not_before_ns = 0
        element.not_after_ns = 0
        element.end_reason = int(Reason.EXPIRED)
        element.number = number
        self._slots[number] = index
        return index

    def set(
        self,
        number: int,
        state: Reason,
        not_before_ns: int,
        not_after_ns: int,
        end_reason: Reason = Reason.EXPIRED,
    ) -> bool:
        """Write the state of a license; True if its open sockets are dead by that.

        `end_reason` is what uses are refused with from `not_after_ns` on: EXPIRED, LEASE_LOST or
        CONDITION, whichever the license ends by first. RuntimeError for LICENSED: the kernel
        would take it for a grant that has no end.

        Times are CLOCK_BOOTTIME, clamped to 0..2**64-1. Taking away comes first, giving last:
        at no moment is more granted than before and after.
        """
        if end_reason is Reason.LICENSED:
            raise RuntimeError("a license cannot end by being valid")
        element = self._array[self.slot(number)]
        element.end_reason = int(end_reason)
        not_before_ns = min(max(not_before_ns, 0), NANOSECONDS_MAX)
        not_after_ns = min(max(not_after_ns, 0), NANOSECONDS_MAX)
        if state is Reason.LICENSED:
            element.not_before_ns = not_before_ns
            element.not_after_ns = not_after_ns
            if element.state != int(state):
                element.epoch += 1
                element.state = int(state)
            return False
        was_granting = element.state == int(Reason.LICENSED)
        if element.state != int(state):
            element.state = int(state)
            element.epoch += 1
        element.not_before_ns = not_before_ns
        element.not_after_ns = not_after_ns
        return bool(was_granting)

    def renew(self, number: int) -> None:
        """Have every socket of a license decided anew: its state stays, its tags do not."""
        index = self._slots.get(number)
        if index is not None:
            self._array[index].epoch += 1

    def release(self, number: int) -> bool:
        """Give a slot back; the tags that name it are dead. False if there was none."""
        index = self._slots.pop(number, None)
        if index is None:
            return False
        element = self._array[index]
        element.state = int(Reason.REVOKED)
        element.epoch += 1
        element.not_after_ns = 0
        element.number = 0
        self._free.append(index)
        return True

    def get(self, number: int) -> Slot | None:
        """What the kernel holds for a license."""
        index = self._slots.get(number)
        if index is None:
            return None
        element = self._array[index]
        return Slot(
            index,
            element.number,
            element.epoch,
            Reason(element.state),
            element.not_before_ns,
            element.not_after_ns,
            Reason(element.end_reason) if element.end_reason else Reason.EXPIRED,
        )

    def number_at(self, slot: int) -> int:
        """The license in a slot; 0 for none."""
        return int(self._array[slot].number) if slot < len(self._array) else 0

    def __iter__(self) -> Iterator[Slot]:
        for number in list(self._slots):
            held = self.get(number)
            if held is not None:
                yield held

    def close(self) -> None:
        """Unmap."""
        self._array.close()
