# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 -- the fields are described where they are made
"""What the meters hand over, as this package sees it: the kernel's sheets or the fallback's.

Structural types: `licagent.kernel.usage` has the classes that fit, and this package knows no
kernel. Units and meanings stand there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, runtime_checkable


class WhoRow(Protocol):
    """The owner of a row, in the kernel's numbers."""

    @property
    def pid(self) -> int: ...
    @property
    def start_ns(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def cgroup(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def inode(self) -> int: ...
    @property
    def path(self) -> int: ...
    @property
    def digest(self) -> int: ...
    @property
    def comm(self) -> str: ...


class WorkRow(Protocol):
    """Compute and storage input and output of one owner."""

    @property
    def who(self) -> WhoRow: ...
    @property
    def cpu_ns(self) -> int: ...
    @property
    def read_bytes(self) -> int: ...
    @property
    def write_bytes(self) -> int: ...
    @property
    def cancelled_bytes(self) -> int: ...
    @property
    def memory_byte_ms(self) -> int: ...
    @property
    def processes(self) -> int: ...


@runtime_checkable
class PackedRows(Protocol):
    """Rows of work of which nobody has made an object each (`kernel.usage.WorkRows`)."""

    @property
    def keys(self) -> Sequence[Hashable]:
        """The owner of each; two that differ may be one all the same."""
        ...  # pragma: no cover

    @property
    def amounts(self) -> Sequence[tuple[int, int, int, int, int, int]]:
        """Of each, in the order of a `WorkRow`; none is negative."""
        ...  # pragma: no cover

    @property
    def who(self) -> Callable[[Any], WhoRow]:
        """What a key says."""
        ...  # pragma: no cover


class FlowRow(Protocol):
    """Network use of one owner, license, resource and protocol."""

    @property
    def who(self) -> WhoRow: ...
    @property
    def license(self) -> int: ...
    @property
    def resource(self) -> int: ...
    @property
    def protocol(self) -> int: ...
    @property
    def is_loopback(self) -> bool: ...
    @property
    def tx_payload_bytes(self) -> int: ...
    @property
    def rx_payload_bytes(self) -> int: ...
    @property
    def tx_wire_bytes(self) -> int: ...
    @property
    def rx_wire_bytes(self) -> int: ...
    @property
    def tx_packets(self) -> int: ...
    @property
    def rx_packets(self) -> int: ...


class Sheet(Protocol):
    """What was counted between two moments of CLOCK_BOOTTIME."""

    @property
    def number(self) -> int: ...
    @property
    def opened_ns(self) -> int: ...
    @property
    def closed_ns(self) -> int: ...
    @property
    def work(self) -> Sequence[WorkRow]: ...
    @property
    def flows(self) -> Sequence[FlowRow]: ...
    @property
    def spilled_work(self) -> WorkRow | None: ...
    @property
    def spilled_flows(self) -> Sequence[FlowRow]: ...


class Meter(Protocol):
    """Counts since it was begun, and holds what it counted until it is discarded."""

    def collect(self) -> None:
        """Bring what live processes used so far into the open sheet."""
        ...  # pragma: no cover

    def close_sheet(self) -> Sheet:
        """The closed sheet that was not discarded yet; else the open one, closed."""
        ...  # pragma: no cover

    def discard(self, number: int) -> None:
        """Forget a closed sheet: it is committed."""
        ...  # pragma: no cover

    def peek(self) -> Sheet:
        """The open sheet as it stands; nothing changes."""
        ...  # pragma: no cover

    def end(self) -> None:
        """Count no more; what is in the open sheet is lost. Counting begins anew, if ever."""
        ...  # pragma: no cover
