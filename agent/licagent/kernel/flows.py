# SPDX-License-Identifier: Apache-2.0
"""Network meters: one a process, license, resource and protocol, shared with the kernel by mmap.

A meter that counted nothing for a while is taken back: first it leaves the index and gets another
generation, so that sockets look for another; what was still on its way is in the next sheet; and
when that one is discarded, the meter is free for somebody else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.maps import Map, MappedArray, Queue
from licagent.kernel.numbers import METER_BITS, METERS, METERS_SPILLED
from licagent.kernel.rcu import wait_for_readers
from licagent.kernel.usage import FlowRow, Who
from licagent.kernel.usage_structs import FlowKey, Meter

_HEADER: Final = struct.Struct("=Q IIIIIIII QQII")
_COUNTS: Final = struct.Struct("=12Q")
_U32: Final = struct.Struct("=I")
_PROTOCOLS: Final = (0, 6, 17, 1, 132, 255)
"""Of the meters that are shared by all who got none; see spilled_meter in bpf/meter.h."""

IDLE_SHEETS: Final = 20
"""A meter that counted nothing in so many sheets is taken back: with sheets of 5 seconds, later
than an orphaned connection lasts that waits for the peer's FIN (tcp_fin_timeout, 60 s)."""

_GENERATIONS: Final = (1 << (32 - METER_BITS)) - 1
_PRESSED: Final = METERS // 2
_IDLE_WHEN_PRESSED: Final = 2
_NONE: Final = bytes(_COUNTS.size)
_ZERO: Final = bytes(4)
_INDICES: Final = range(METERS_SPILLED + 1, METERS)
_IS_FREE_AT: Final = FlowKey.is_free.offset


class FlowMeters:
    """`meters`, `flows` and `free_meters`."""

    def __init__(self, pins: PinFolder) -> None:
        self._meters: MappedArray[Meter] = MappedArray(pins.maps / "meters", Meter)
        self._index = Map(pins.maps / "flows")
        self._free = Queue(pins.maps / "free_meters")
        self._idle: dict[int, int] = {}
        self._retired: dict[int, int] = {}  # meter -> the sheet whose end makes it free
        self._in_use: dict[int, bytes] = {}  # as of the last `read`
        self._nonzero: tuple[int, list[int]] = (0, [])

    def begin(self) -> None:
        """Put meters that nobody has into the queue: all of them at first, later those that a
        daemon took back and did not live to give away."""
        self._queue_lost()
        self._meters.keep(0)

    def _queue_lost(self) -> None:
        used = set(self._indexed())
        lost = [index for index in _INDICES if index not in used and not self._is_free(index)]
        if not lost:
            return
        wait_for_readers()  # who has taken one has put it into the index now
        used = set(self._indexed())
        for index in lost:
            if index in used or self._is_free(index):
                continue
            self._move_generation(index)  # nobody shall find it any more
            if self._meters.copy(index, _HEADER.size, 2 * _COUNTS.size) != 2 * _NONE:
                self._retired[index] = 0  # read it with the next two sheets
            else:
                self._set_free(index)

    def _move_generation(self, index: int) -> None:
        meter = self._meters[index]
        meter.generation = (meter.generation + 1) & _GENERATIONS

    def _is_free(self, index: int) -> bool:
        return self._meters.copy(index, _IS_FREE_AT, 4) != _ZERO

    def _set_free(self, index: int) -> None:
        self._meters[index].key.is_free = 1
        self._free.push(_U32.pack(index))

    def _indexed(self) -> dict[int, bytes]:
        """Meters that sockets may find, and by which key."""
        return {_U32.unpack(value)[0] & (METERS - 1): key for key, value in self._index.items()}

    def read(self, number: int) -> tuple[tuple[FlowRow, ...], tuple[FlowRow, ...]]:
        """The rows of a sheet, and those of the shared meters."""
        offset = _HEADER.size + (number & 1) * _COUNTS.size
        rows: list[FlowRow] = []
        self._in_use = self._indexed()
        nonzero = []
        for index in (*self._in_use, *self._retired):
            counts = self._meters.copy(index, offset, _COUNTS.size)
            if counts == _NONE:
                continue
            nonzero.append(index)
            rows.extend(_rows(self._meters.copy(index, 0, _HEADER.size), counts))
        spilled: list[FlowRow] = []
        for index in range(1, METERS_SPILLED + 1):
            counts = self._meters.copy(index, offset, _COUNTS.size)
            if counts != _NONE:
                nonzero.append(index)
                spilled.extend(_split(_nobody(), 0, 0, _PROTOCOLS[index], counts))
        self._nonzero = (number, nonzero)
        return tuple(rows), tuple(spilled)

    def discard(self, number: int) -> None:
        """Zero a closed sheet, take back what was idle, free what was taken back. Idempotent."""
        known, nonzero = self._nonzero
        if known != number:
            self.read(number)
            nonzero = self._nonzero[1]
        offset = _HEADER.size + (number & 1) * _COUNTS.size
        for index in nonzero:
            self._meters.clear(index, offset, _COUNTS.size)
        self._nonzero = (0, [])
        self._free_retired(number)
        self._retire(number, frozenset(nonzero))
        self._meters.keep(0)  # until the next sheet is read

    def _free_retired(self, number: int) -> None:
        for index, after in list(self._retired.items()):
            if after == 0:
                self._retired[index] = number + 1
            elif number >= after:
                del self._retired[index]
                self._set_free(index)

    def _retire(self, number: int, busy: frozenset[int]) -> None:
        patience = _IDLE_WHEN_PRESSED if len(self._in_use) > _PRESSED else IDLE_SHEETS
        going = []
        for index in self._in_use:
            idle = 0 if index in busy else self._idle.get(index, 0) + 1
            self._idle[index] = idle
            if idle >= patience:
                going.append(index)
        self._idle = {index: idle for index, idle in self._idle.items() if index in self._in_use}
        for index in going:
            self._index.delete(self._in_use[index])
            self._move_generation(index)
            del self._idle[index]
            # What is on its way is in the sheet that is open now.
            self._retired[index] = number + 1

    def close(self) -> None:
        """Unmap and close."""
        self._meters.close()
        self._index.close()
        self._free.close()


def _rows(header: bytes, counts: bytes) -> Iterable[FlowRow]:
    (
        cgroup,
        pid,
        _exec_id,
        uid,
        gid,
        license,
        resource,
        protocol,
        _is_free,
        start_ns,
        inode,
        device,
        _generation,
    ) = _HEADER.unpack(header)
    who = Who(pid, start_ns, uid, gid, cgroup, device, inode, 0, 0, "")
    return _split(who, license, resource, protocol, counts)


def _split(
    who: Who, license: int, resource: int, protocol: int, counts: bytes
) -> Iterable[FlowRow]:
    """One row for the network and one for loopback, where there is something to say."""
    numbers = _COUNTS.unpack(counts)
    for is_loopback in (False, True):
        tx_payload, tx_wire, tx_packets, rx_payload, rx_wire, rx_packets = numbers[
            6 * is_loopback : 6 * is_loopback + 6
        ]
        if not any((tx_payload, tx_wire, tx_packets, rx_payload, rx_wire, rx_packets)):
            continue
        yield FlowRow(
            who,
            license,
            resource,
            protocol,
            is_loopback,
            tx_payload,
            rx_payload,
            tx_wire,
            rx_wire,
            tx_packets,
            rx_packets,
        )


def _nobody() -> Who:
    return Who(0, 0, 0, 0, 0, 0, 0, 0, 0, "")
