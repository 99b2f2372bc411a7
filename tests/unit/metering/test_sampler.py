# SPDX-License-Identifier: Apache-2.0
"""Each sheet is committed once, whatever ends the daemon, and whatever the disk says."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
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
)

from licagent.domain.usage import Meter, Quality, UsageKind
from licagent.metering.footprint import FootprintRow
from licagent.metering.records import Qualities
from licagent.metering.sampler import Sampler
from licagent.metering.spool import FOOTPRINT_MARK, OFF_MARK, Refusal, SheetMark

PLACES = ("close", "closed", "commit", "committed", "discard", "discarded")


def sampler(
    kernel: Kernel,
    disk: Disk,
    *,
    die: str = "",
    spool: FakeSpool | None = None,
    boot_id: str = BOOT,
    **more: Any,
) -> Sampler:
    spool = spool or FakeSpool(disk)
    made = Sampler(
        FakeMeter(kernel, die),
        spool,
        Names(),
        boot_id=boot_id,
        unix_ms=lambda at_ns: 1_700_000_000_000 + at_ns // 1_000,
        now_ns=lambda: kernel.now_ns,
        totals=lambda: {Meter.CPU_NS: {"host": kernel.total_ns}},
        **{"qualities": Qualities({}), **more},
    )
    made.begin({Meter.CPU_NS: {"host": kernel.total_ns}})
    spool.die = die or spool.die
    return made


@given(
    lives=st.lists(
        st.tuples(
            st.sampled_from((*PLACES, "")),
            st.lists(st.tuples(st.integers(0, 3), st.integers(1, 1000)), max_size=4),
            st.integers(0, 3),
        ),
        max_size=12,
    )
)
def test_killed_anywhere_nothing_is_lost_and_nothing_is_counted_twice(
    lives: list[tuple[str, list[tuple[int, int]], int]],
) -> None:
    kernel, disk = Kernel(), Disk()
    used = 0
    for die, uses, steps in [*lives, ("", [], 3)]:
        daemon = sampler(kernel, disk, die=die)
        try:
            for _ in range(steps):
                for pid, cpu_ns in uses:
                    kernel.use(who(pid), cpu_ns)
                    used += cpu_ns
                daemon.step(Charge())
        except Killed:
            continue
    assert cpu_of(disk.records) == used
    assert not [each for each in disk.records if each.kind is UsageKind.GAP]


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 900), st.sampled_from((*PLACES, "", "")))
    )
)
def test_processes_and_unattributed_never_exceed_the_hosts_total(
    steps: list[tuple[int, int, str]],
) -> None:
    kernel, disk = Kernel(), Disk()
    sampler(kernel, disk)
    for seen, unseen, die in steps:
        kernel.use(who(1), seen)
        kernel.use_unseen(unseen)
        try:
            sampler(kernel, disk, die=die).step(Charge())
        except Killed:
            continue
    assert cpu_of(disk.records) <= kernel.total_ns
    daemon = sampler(kernel, disk)
    for _ in range(3):  # a balance is published when two readings have it
        daemon.step(Charge())
    assert cpu_of(disk.records) == kernel.total_ns


def test_the_unattributed_line_is_what_the_host_has_beside_its_processes() -> None:
    kernel, disk = Kernel(), Disk()
    daemon = sampler(kernel, disk)
    for _ in range(5):
        kernel.use(who(1), 900)
        kernel.use_unseen(100)
        daemon.step(Charge())
    daemon.step(Charge())
    lines = [each for each in disk.records if each.kind is UsageKind.UNATTRIBUTED]
    assert cpu_of(lines) == 500
    assert all(each.estimated == {Meter.CPU_NS} for each in lines)


def test_what_the_ledger_refuses_stays_in_the_kernel() -> None:
    kernel, disk = Kernel(), Disk()
    spool = FakeSpool(disk, refusal=Refusal.BLOCKED)
    daemon = sampler(kernel, disk, spool=spool)
    for _ in range(4):
        kernel.use(who(1), 10)
        assert daemon.step(Charge()).refusal is Refusal.BLOCKED
    pending = daemon.pending(Charge())
    assert [cpu_of(daemon.read(sheet).records) for sheet in pending] == [10, 30]
    spool.refusal = None
    daemon.step(Charge())
    daemon.step(Charge())
    assert cpu_of(disk.records) == 40
    assert len(daemon.pending(Charge())) == 1


def test_a_full_ledger_gets_fewer_records_first() -> None:
    kernel, disk = Kernel(), Disk()
    spool = FakeSpool(disk)
    spool.room = 2
    daemon = sampler(kernel, disk, spool=spool)
    for pid in range(1, 6):
        kernel.use(who(pid), pid)
    step = daemon.step(Charge())
    assert step.merged
    assert step.refusal is None
    assert [record.owner.pid for record in disk.records] == [0]
    assert cpu_of(disk.records) == 15
    spool.room = 0
    kernel.use(who(1), 7)
    assert daemon.step(Charge()).refusal is Refusal.FULL
    spool.room = 9
    daemon.step(Charge())
    assert cpu_of(disk.records) == 22


def test_a_mark_that_may_not_be_on_the_disk_discards_nothing() -> None:
    kernel, disk = Kernel(), Disk()
    kernel.use(who(1), 10)
    with pytest.raises(Killed):
        sampler(kernel, disk, die="committed").step(Charge())
    spool = FakeSpool(disk)
    spool.is_settled = False
    daemon = sampler(kernel, disk, spool=spool)
    assert daemon.step(Charge()).refusal is Refusal.BLOCKED
    assert kernel.closed is not None
    spool.is_settled = True
    daemon.step(Charge())
    assert cpu_of(disk.records) == 10


def test_a_reboot_is_a_gap_with_its_interval() -> None:
    kernel, disk = Kernel(), Disk()
    kernel.use(who(1), 10)
    sampler(kernel, disk).step(Charge())
    end = disk.records[-1].end_unix_ms
    kernel.restart()
    kernel.now_ns += 50_000
    kernel.opened_ns = kernel.now_ns
    daemon = sampler(kernel, disk, boot_id="11111111-5f4f-4f0e-9a55-8f4a3a6d1b11")
    daemon.step(Charge())
    daemon.step(Charge())
    (gap,) = [each for each in disk.records if each.kind is UsageKind.GAP]
    assert gap.start_unix_ms == end
    assert gap.end_unix_ms == end + 50
    assert "restarted" in gap.detail


def test_programs_that_were_taken_away_leave_a_gap_and_no_sheet_is_taken_for_another() -> None:
    kernel, disk = Kernel(), Disk()
    kernel.use(who(1), 10)
    sampler(kernel, disk).step(Charge())
    kernel.now_ns += 5_000_000_000
    kernel.restart()  # its first sheet has the number of the one that is committed
    kernel.use(who(1), 7)
    sampler(kernel, disk).step(Charge())
    assert cpu_of(disk.records) == 17
    (gap,) = [each for each in disk.records if each.kind is UsageKind.GAP]
    assert "not loaded" in gap.detail


@pytest.mark.parametrize("die", ["", *PLACES, "end", "ended"])
def test_what_is_used_while_metering_is_off_is_nobodys(die: str) -> None:
    kernel, disk = Kernel(), Disk()
    sampler(kernel, disk).step(Charge())
    kernel.use(who(1), 10)
    with contextlib.suppress(Killed):
        sampler(kernel, disk, die=die).end(Charge())
    if not kernel.is_off:
        assert sampler(kernel, disk).end(Charge()) is None
    kernel.now_ns += 5_000_000
    kernel.use(who(1), 1_000)
    assert sampler(kernel, disk).note_off() is None
    end_ms = SheetMark.from_bytes(disk.marks[OFF_MARK]).end_unix_ms
    kernel.begin()
    daemon = sampler(kernel, disk)
    kernel.use(who(1), 7)
    for _ in range(3):
        daemon.step(Charge())
    assert cpu_of(disk.records) == 17
    (gap,) = [each for each in disk.records if each.kind is UsageKind.GAP]
    assert gap.detail == "metering was off"
    assert (gap.start_unix_ms, gap.end_unix_ms) == (end_ms, end_ms + 5_000)
    assert OFF_MARK not in disk.marks


def test_a_gap_that_was_noted_is_committed_once() -> None:
    kernel, disk = Kernel(), Disk()
    spool = FakeSpool(disk, refusal=Refusal.BLOCKED)
    daemon = sampler(kernel, disk, spool=spool)
    daemon.note_gap(5, 9, "set aside")
    daemon.step(Charge())
    daemon.note_gap(9, 8, "and more")
    spool.refusal = None
    for _ in range(3):
        daemon.step(Charge())
    gaps = [each for each in disk.records if each.kind is UsageKind.GAP]
    assert [(gap.start_unix_ms, gap.end_unix_ms) for gap in gaps] == [(5, 9), (8, 8)]


def test_a_ledger_that_refuses_keeps_the_meter_on() -> None:
    kernel, disk = Kernel(), Disk()
    spool = FakeSpool(disk)
    daemon = sampler(kernel, disk, spool=spool)
    daemon.step(Charge())
    kernel.use(who(1), 10)
    spool.refusal = Refusal.BLOCKED
    assert daemon.end(Charge()) is Refusal.BLOCKED
    assert not kernel.is_off
    kernel.use(who(1), 5)
    spool.refusal = None
    assert daemon.end(Charge()) is None
    assert cpu_of(disk.records) == 15


def test_no_baseline_outlives_the_time_that_metering_is_off() -> None:
    kernel, disk = Kernel(), Disk()
    daemon = sampler(kernel, disk, footprints=Footing())
    daemon.step(Charge())
    assert FOOTPRINT_MARK in disk.marks
    daemon.end(Charge())
    assert disk.marks.keys() == {OFF_MARK}


def test_off_after_a_restart_of_the_host_is_two_gaps() -> None:
    kernel, disk = Kernel(), Disk()
    kernel.use(who(1), 10)
    sampler(kernel, disk).step(Charge())
    other = "11111111-5f4f-4f0e-9a55-8f4a3a6d1b11"
    kernel.restart()
    kernel.now_ns += 50_000
    daemon = sampler(kernel, disk, boot_id=other)
    assert daemon.note_off() is None
    assert daemon.note_off() is None
    kernel.now_ns += 50_000
    kernel.restart()
    sampler(kernel, disk, boot_id=other).step(Charge())
    gaps = [each.detail for each in disk.records if each.kind is UsageKind.GAP]
    assert len(gaps) == 2
    assert "restarted" in gaps[0]
    assert gaps[1] == "metering was off"


def test_the_totals_of_a_sheet_that_was_closed_long_ago_are_not_read() -> None:
    kernel, disk = Kernel(), Disk()
    daemon = sampler(kernel, disk)
    with pytest.raises(Killed):
        sampler(kernel, disk, die="commit").step(Charge())
    kernel.now_ns += 10_000_000_000
    kernel.use(who(1), 1_000_000)  # in the open sheet: not in the closed one
    daemon.step(Charge())
    daemon.step(Charge())
    daemon.step(Charge())
    assert cpu_of(disk.records) == 1_000_000


def test_meters_that_are_not_there_are_named_in_each_interval() -> None:
    kernel, disk = Kernel(), Disk()
    qualities = Qualities({Meter.TX_PACKETS: Quality.UNSUPPORTED, Meter.CPU_NS: Quality.ESTIMATED})
    kernel.use(who(1), 10)
    sampler(kernel, disk, qualities=qualities).step(Charge())
    compute, line = disk.records
    assert compute.estimated == {Meter.CPU_NS}
    assert line.kind is UsageKind.UNATTRIBUTED
    assert line.unsupported == {Meter.TX_PACKETS}
    assert not line.quantities


def test_a_host_at_rest_writes_no_frames() -> None:
    kernel, disk = Kernel(), Disk()
    daemon = sampler(kernel, disk)
    daemon.step(Charge())
    marks = dict(disk.marks)
    kernel.use_unseen(5)
    for _ in range(3):
        assert daemon.step(Charge()).refusal is None
    assert cpu_of(disk.records) == 5
    marks = dict(disk.marks)
    for _ in range(3):
        assert daemon.step(Charge()).refusal is None
    assert disk.marks == marks
    kernel.use(who(1), 7)
    later = sampler(kernel, disk)
    later.step(Charge())
    assert cpu_of(disk.records) == 12
    assert not [each for each in disk.records if each.kind is UsageKind.GAP]


class Footing:
    """Footprints that go on until they are committed."""

    def __init__(self) -> None:
        self.held = 0
        self.count = 0

    def take(self) -> tuple[list[FootprintRow], bytes]:
        self.held += 100
        row = FootprintRow(
            name="home",
            kind="path",  # type: ignore[arg-type]
            path="/home",
            resource="disk",
            uid=-1,
            user="",
            project=-1,
            start_unix_ms=1,
            end_unix_ms=2,
            stored_byte_ms=self.held,
            stored_bytes=1,
            inodes=1,
            quality=Quality.EXACT,
            detail="",
        )
        return [row], b"baseline %d" % self.count

    def committed(self) -> None:
        self.held = 0
        self.count += 1


def test_footprints_are_committed_with_the_sheet_or_not_at_all() -> None:
    kernel, disk = Kernel(), Disk()
    spool = FakeSpool(disk, refusal=Refusal.BLOCKED)
    footing = Footing()
    daemon = sampler(kernel, disk, spool=spool, footprints=footing)
    daemon.step(Charge())
    daemon.step(Charge())
    spool.refusal = None
    daemon.step(Charge())
    stored = [record.quantities[Meter.STORED_BYTE_MS] for record in disk.records]
    assert stored == [300]
    assert disk.marks[FOOTPRINT_MARK] == b"baseline 0"
    assert footing.count == 1


def test_a_mark_of_a_sheet_is_short_and_comes_back_as_it_was() -> None:
    mark = SheetMark(BOOT, 5, 6, 7, 8)
    assert len(mark.to_bytes()) <= 64
    assert SheetMark.from_bytes(mark.to_bytes()) == mark
    assert SheetMark.from_bytes(b"something else") == SheetMark()
