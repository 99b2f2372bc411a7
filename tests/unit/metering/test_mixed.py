# SPDX-License-Identifier: Apache-2.0
"""Two meters as one: a frame commits both or neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.metering.worlds import (
    BOOT,
    Charge,
    Disk,
    FakeMeter,
    FakeSpool,
    Kernel,
    Killed,
    Names,
    cpu_of,
    who,
    work,
)

from licagent.domain.usage import Meter, Quality
from licagent.kernel.usage import FlowRow, Sheet, WorkRow
from licagent.metering.mixed import MixedMeter
from licagent.metering.records import Qualities
from licagent.metering.sampler import Sampler
from licagent.metering.spool import FALLBACK_MARK

PLACES = ("close", "closed", "commit", "committed", "discard", "discarded", "")


@dataclass(frozen=True)
class CountedSheet:
    number: int
    work: tuple[WorkRow, ...]
    baseline: bytes
    opened_ns: int = 0
    closed_ns: int = 0
    flows: tuple[FlowRow, ...] = ()
    spilled_work: WorkRow | None = None
    spilled_flows: tuple[FlowRow, ...] = ()

    @property
    def quality(self) -> Mapping[Meter, Quality]:
        return {Meter.CPU_NS: Quality.ESTIMATED}


class Counter:
    """A counter that only grows, read in sheets: what was committed is in the baseline."""

    def __init__(self, used: list[int], baseline: bytes) -> None:
        self._used = used
        self._from = int(baseline or b"0")
        self._number = 1
        self._closed: CountedSheet | None = None

    def collect(self) -> None:
        return

    def close_sheet(self) -> CountedSheet:
        if self._closed is None:
            self._closed = self.peek()
            self._from = sum(self._used)
            self._number += 1
        return self._closed

    def discard(self, number: int) -> None:
        if self._closed is not None and self._closed.number == number:
            self._closed = None

    def close(self) -> None:
        return

    def peek(self) -> CountedSheet:
        now = sum(self._used)
        return CountedSheet(
            self._number, (work(who(5), now - self._from), work(who(9), 1)), b"%d" % now
        )


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 3), st.sampled_from(PLACES))))
def test_killed_anywhere_the_counter_is_committed_once(lives: list[tuple[int, int, str]]) -> None:
    kernel, disk, used = Kernel(), Disk(), [0]

    def ours(row: WorkRow) -> bool:
        return row.who.pid == 5

    for amount, steps, die in [*lives, (0, 2, "")]:
        counter = Counter(used, disk.marks.get(FALLBACK_MARK, b""))
        spool = FakeSpool(disk)
        sampler = Sampler(
            MixedMeter(FakeMeter(kernel, die), counter, ours),  # type: ignore[arg-type]
            spool,
            Names(),
            boot_id=BOOT,
            unix_ms=lambda at_ns: at_ns,
            now_ns=lambda: kernel.now_ns,
            totals=dict,
            qualities=Qualities({}),
        )
        sampler.begin({})
        spool.die = die
        try:
            for _ in range(steps):
                used.append(amount)
                sampler.step(Charge())
        except Killed:
            continue
    assert cpu_of(disk.records) == sum(used)
    assert all(each.estimated == {Meter.CPU_NS} for each in disk.records)


def test_the_interval_and_the_flows_are_the_kernels() -> None:
    kernel = Kernel()
    mixed = MixedMeter(FakeMeter(kernel), Counter([7], b""), lambda _row: True)
    found = mixed.close_sheet()
    closed: Sheet | None = kernel.closed
    assert closed is not None
    assert (found.number, found.opened_ns, found.closed_ns) == (1, 1000, closed.closed_ns)
    assert [row.cpu_ns for row in found.work] == [7, 1]
    assert mixed.close_sheet() == found
    mixed.discard(found.number)
    assert mixed.peek().number == 2
