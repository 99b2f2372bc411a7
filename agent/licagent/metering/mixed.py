# SPDX-License-Identifier: Apache-2.0
"""Two meters as one: network from the kernel's sheets, compute from the fallback.

For kernels whose programs count packets but not processes. The frame that commits a sheet has the
kernel's number and the fallback's baseline, so both are committed or neither is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from licagent.domain.usage import Meter, Quality
from licagent.metering.rows import FlowRow, Sheet, WorkRow
from licagent.metering.rows import Meter as SheetMeter


@dataclass(frozen=True, slots=True)
class MixedSheet:
    """A sheet of both; the interval is the kernel's."""

    number: int
    opened_ns: int
    closed_ns: int
    work: Sequence[WorkRow]
    flows: Sequence[FlowRow]
    spilled_work: WorkRow | None
    spilled_flows: Sequence[FlowRow]
    baseline: bytes
    quality: Mapping[Meter, Quality]
    """Of this sheet's work: less than usual where the kernel dropped records."""


class WorkSheet(Sheet, Protocol):
    """A sheet that says where its meter goes on from."""

    @property
    def baseline(self) -> bytes:
        """For the ledger's mark."""
        ...  # pragma: no cover

    @property
    def quality(self) -> Mapping[Meter, Quality]:
        """Of what it counted."""
        ...  # pragma: no cover


class WorkMeter(Protocol):
    """The fallback (`metering.fallback.sampler.FallbackMeter`)."""

    def collect(self) -> None:
        """As `rows.Meter`."""
        ...  # pragma: no cover

    def close_sheet(self) -> WorkSheet:
        """As `rows.Meter`."""
        ...  # pragma: no cover

    def discard(self, number: int) -> None:
        """As `rows.Meter`."""
        ...  # pragma: no cover

    def peek(self) -> WorkSheet:
        """As `rows.Meter`."""
        ...  # pragma: no cover

    def close(self) -> None:
        """Count no more."""
        ...  # pragma: no cover


class MixedMeter:
    """`rows.Meter` over the two."""

    def __init__(
        self, kernel: SheetMeter, work: WorkMeter, is_ours: Callable[[WorkRow], bool]
    ) -> None:
        """`is_ours`: whether a row is of a process below the agent's root: not all are asked."""
        self._is_ours = is_ours
        self._kernel = kernel
        self._work = work
        self._closed: tuple[int, int] | None = None

    def collect(self) -> None:
        """See `rows.Meter`."""
        self._kernel.collect()
        self._work.collect()

    def close_sheet(self) -> MixedSheet:
        """See `rows.Meter`."""
        flows, work = self._kernel.close_sheet(), self._work.close_sheet()
        self._closed = (flows.number, work.number)
        return self._mixed(flows, work)

    def discard(self, number: int) -> None:
        """See `rows.Meter`."""
        self._kernel.discard(number)
        if self._closed is not None and self._closed[0] == number:
            self._work.discard(self._closed[1])
        self._closed = None

    def discard_stale(self, number: int) -> None:
        """Forget a sheet that an earlier daemon committed: the fallback's is of this one."""
        self._kernel.discard(number)
        self._closed = None

    def peek(self) -> MixedSheet:
        """See `rows.Meter`."""
        return self._mixed(self._kernel.peek(), self._work.peek())

    def end(self) -> None:
        """See `rows.Meter`."""
        self._kernel.end()
        self._work.close()
        self._closed = None

    def _mixed(self, flows: Sheet, work: WorkSheet) -> MixedSheet:
        return MixedSheet(
            number=flows.number,
            opened_ns=flows.opened_ns,
            closed_ns=flows.closed_ns,
            work=tuple(row for row in work.work if self._is_ours(row)),
            flows=flows.flows,
            spilled_work=work.spilled_work,
            spilled_flows=flows.spilled_flows,
            baseline=work.baseline,
            quality=work.quality,
        )
