# SPDX-License-Identifier: Apache-2.0
"""Usage as the kernel counts it: sheets of compute and network use.

The programs add up in the *sheet* that `control.sheet` names. Closing a sheet is one store; the
programs that still write to it are waited for, and then it is final: it stays in the kernel,
pinned, until it is discarded. So the one who bills commits a sheet's numbers together with its
number, and discards it afterwards. Killed at any point in between, it finds the same sheet
again, and its number says whether it was committed. While nothing is closed, everything goes on
adding up in the open sheet: the kernel holds what the disk cannot take.

Two sheets exist at a time, the open one and the closed one that waits to be discarded. Rows are
tuples: a sheet may have tens of thousands, and a frozen dataclass costs four times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload


class Who(NamedTuple):
    """The owner of a row, in the kernel's numbers."""

    pid: int
    """0: several processes that lived and died between two samples."""
    start_ns: int
    """CLOCK_BOOTTIME at which the process began; 0 where `pid` is 0, or unknown."""
    uid: int
    gid: int
    cgroup: int
    device: int
    inode: int
    """The executable's; 0 for kernel threads and where it is not known."""
    path: int
    """Number of unix:path, 0: none that the policy names."""
    digest: int
    comm: str


class WorkRow(NamedTuple):
    """Compute and storage input and output of one owner within a sheet."""

    who: Who
    cpu_ns: int
    read_bytes: int
    write_bytes: int
    cancelled_bytes: int
    memory_byte_ms: int
    """By sampling: estimated."""
    processes: int
    """That ended."""


class WorkRows(Sequence[WorkRow]):
    """Rows of which nobody makes an object who does not look at them one by one."""

    __slots__ = ("amounts", "keys", "who")

    def __init__(
        self,
        keys: Sequence[bytes],
        amounts: Sequence[tuple[int, int, int, int, int, int]],
        who: Callable[[bytes], Who],
    ) -> None:
        """`keys`: the owner of each, as the kernel has it; `who`: what a key says.

        `amounts`: of each, what a `WorkRow` has behind its owner, in that order.
        """
        self.keys = keys
        self.amounts = amounts
        self.who = who

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[WorkRow]:
        for key, amounts in zip(self.keys, self.amounts, strict=True):
            yield WorkRow(self.who(key), *amounts)

    @overload
    def __getitem__(self, index: int) -> WorkRow: ...
    @overload
    def __getitem__(self, index: slice) -> WorkRows: ...
    def __getitem__(self, index: int | slice) -> WorkRow | WorkRows:
        if isinstance(index, slice):
            return WorkRows(self.keys[index], self.amounts[index], self.who)
        return WorkRow(self.who(self.keys[index]), *self.amounts[index])


class FlowRow(NamedTuple):
    """Network use of one owner, license, resource and protocol within a sheet."""

    who: Who
    license: int
    """Fleet-wide number; 0: none."""
    resource: int
    protocol: int
    is_loopback: bool
    tx_payload_bytes: int
    rx_payload_bytes: int
    tx_wire_bytes: int
    rx_wire_bytes: int
    tx_packets: int
    rx_packets: int


@dataclass(frozen=True, slots=True)
class Sheet:
    """What was counted in one sheet."""

    number: int
    """Counts up from 1 within a boot."""
    opened_ns: int
    """CLOCK_BOOTTIME."""
    closed_ns: int
    """CLOCK_BOOTTIME; of an open sheet: now."""
    work: Sequence[WorkRow]
    flows: tuple[FlowRow, ...]
    spilled_work: WorkRow | None
    """Counted while the tables were full: exact in sum, its owners are not known."""
    spilled_flows: tuple[FlowRow, ...]


@dataclass(frozen=True, slots=True)
class MeterSupport:
    """Which meters this kernel counts."""

    work: bool
    """CPU, storage input and output, memory: needs BTF and 5.12."""
    payload: bool
    """Exact TCP payload (else from packets: repetitions are in it)."""
    flows: bool
