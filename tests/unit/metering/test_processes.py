# SPDX-License-Identifier: Apache-2.0
"""Totals by process, unit and license since the daemon began, with what is not committed yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from tests.unit.metering.worlds import Charge, Names, flow, who, work

from licagent.kernel.usage import FlowRow, Sheet, WorkRow
from licagent.metering import owners, processes
from licagent.metering.owners import OwnerBook
from licagent.metering.processes import AMOUNTS, STAY_NS, Alive, Lines, ProcessTable

CPU = AMOUNTS.index("cpu_ns")
SENT = AMOUNTS.index("tx_payload_bytes")
TICK_NS = 20_000_000


def sheet(*rows: WorkRow, flows: tuple[FlowRow, ...] = (), at_ns: int = 10) -> Sheet:
    return Sheet(1, 0, at_ns, rows, flows, None, ())


class Host:
    """A table, and which processes live."""

    def __init__(self) -> None:
        self.table = ProcessTable()
        self.owners = OwnerBook(Names())
        self.owners.begin(Charge({1000: "acme"}))
        self.living: dict[int, Alive] = {}

    def alive(self, pids: Iterable[int]) -> Mapping[int, Alive]:
        return {pid: self.living[pid] for pid in pids if pid in self.living}

    def live(self, pid: int) -> None:
        self.living[pid] = Alive(pid * 1_000_000, 1, 4096)

    def take(self, *rows: WorkRow, flows: tuple[FlowRow, ...] = (), at_ns: int = 10) -> None:
        self.table.take(sheet(*rows, flows=flows, at_ns=at_ns), self.owners)

    def look(self, *pending: Sheet, at_ns: int = 20) -> Lines:
        return self.table.look(pending, self.owners, self.alive, at_ns, TICK_NS)[0]


def test_totals_add_up_and_a_look_changes_none_of_them() -> None:
    host = Host()
    host.live(5)
    host.take(work(who(5), 10))
    for _ in range(2):
        lines = host.look(sheet(work(who(5), 3), flows=(flow(who(5), tx_payload_bytes=8),)))
        process = lines.processes[5, 5_000_000]
        assert process.amounts[CPU] == 13
        assert process.amounts[SENT] == 8
        assert lines.units["c1.service"].amounts[CPU] == 13
        assert lines.licenses["acme"].amounts[CPU] == 13
        assert lines.licenses[""].amounts[SENT] == 8
    assert host.look().processes[5, 5_000_000].amounts[CPU] == 10


def test_a_look_before_the_first_committed_sheet_loses_nothing() -> None:
    host = Host()
    host.live(5)
    pending = sheet(work(who(5), 3), flows=(flow(who(5), tx_payload_bytes=8),))
    first = host.look(pending)
    assert first.processes[5, 5_000_000].amounts[CPU] == 3
    assert len(host.table) == 0
    host.take(work(who(5), 3), at_ns=20)
    host.take(work(who(5), 17), at_ns=30)
    lines = host.look(sheet(work(who(5), 4), at_ns=40), at_ns=40)
    assert lines.processes[5, 5_000_000].amounts[CPU] == 24
    assert lines.units["c1.service"].amounts[CPU] == 24
    committed = host.look().processes[5, 5_000_000]
    assert (committed.amounts[CPU], committed.used_ns) == (20, 30)


def test_a_process_is_pid_and_start_and_its_latest_name_counts() -> None:
    host = Host()
    host.live(5)
    host.take(work(who(5, comm="sh"), 10))
    host.take(work(who(5, comm="curl", inode=8), 5))
    host.take(flows=(flow(who(5, start_ns=0, comm=""), license=2, tx_payload_bytes=4),))
    host.take(work(who(5, start_ns=99_000_000_000), 1))
    lines = host.look()
    first, second = lines.processes[5, 5_000_000], lines.processes[5, 99_000_000_000]
    assert (first.name, first.amounts[CPU], first.amounts[SENT]) == ("curl", 15, 4)
    assert first.license == "acme"
    assert second.amounts[CPU] == 1
    assert (first.exited_ns, second.exited_ns) == (0, 20)  # the pid is the first one's


def test_what_ended_stays_for_a_minute() -> None:
    host = Host()
    host.live(6)
    host.take(work(who(5), 10, processes=1), work(who(6), 10))
    assert host.look().processes[5, 5_000_000].exited_ns == 10
    host.take(at_ns=STAY_NS)
    assert len(host.table) == 2
    host.take(at_ns=2 * STAY_NS)
    assert host.look().processes.keys() == {(6, 6_000_000)}
    del host.living[6]
    assert host.look(at_ns=2 * STAY_NS).processes[6, 6_000_000].exited_ns == 2 * STAY_NS
    host.take(at_ns=4 * STAY_NS)
    assert len(host.table) == 0


def test_processes_that_ended_unseen_are_swept() -> None:
    host = Host()
    host.take(work(who(5), 10), work(who(6), 10))
    host.table.sweep({6: None}, 30)
    host.take(at_ns=2 * STAY_NS)
    assert len(host.table) == 1


def test_the_short_lived_are_a_line_for_each_program() -> None:
    host = Host()
    host.take(work(who(0, comm="true"), 10), work(who(0, comm="true", gid=7), 10))
    host.take(work(who(0, comm="ls", uid=0), 5))
    lines = host.look()
    assert not lines.processes
    assert {key[0]: line.amounts[CPU] for key, line in lines.short.items()} == {"true": 20, "ls": 5}
    total = sum(line.amounts[CPU] for line in lines.units.values())
    assert total == sum(line.amounts[CPU] for line in lines.licenses.values()) == 25


def test_of_too_many_processes_the_ended_and_then_the_idlest_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "PROCESSES_MAX", 3)
    host = Host()
    for pid in range(1, 4):
        host.live(pid)
        host.take(work(who(pid), pid), at_ns=pid)
    host.take(work(who(2), 1, processes=1), at_ns=4)  # it ended just now
    host.live(4)
    host.take(work(who(4), 4), at_ns=5)
    assert {pid for pid, _start in host.look().processes} == {1, 3, 4}
    host.live(5)
    host.take(work(who(5), 5), at_ns=6)
    assert {pid for pid, _start in host.look().processes} == {3, 4, 5}
    host.take(work(who(1), 7), at_ns=7)  # comes back from zero
    assert host.look().processes[1, 1_000_000].amounts[CPU] == 7
    assert len(host.table) == 3


def test_short_lived_programs_of_ever_new_names_do_not_pile_up() -> None:
    host = Host()
    for at in range(60):
        rows = [work(who(0, comm=f"c{at}-{number}"), 1) for number in range(100)]
        host.take(*rows, at_ns=at + 1)
    assert len(host.look().short) == 2000
    assert host.look().units["c1.service"].amounts[CPU] == 6000


def test_owners_that_no_sheet_has_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_PAGE_OWNERS", 50)
    names = Names()
    book, charge = OwnerBook(names), Charge({1000: "acme"})
    numbers: dict[int, set[int]] = {}
    for sheet_number in range(100):
        book.begin(charge)
        for pid in [*range(1, 31), *range(1000 + sheet_number * 20, 1020 + sheet_number * 20)]:
            numbers.setdefault(pid, set()).add(book.of(who(pid)).line)
        for pid in range(9000 + sheet_number * 20, 9020 + sheet_number * 20):
            book.of(who(pid, inode=99))  # cannot be told: asked again with each sheet
    assert len(book) <= 200
    assert len(book._lines) <= 300
    # Who lives is looked up once, and keeps the number of his line.
    assert all(len(numbers[pid]) == 1 for pid in range(1, 31))
    assert len(set.union(*numbers.values())) == len(numbers)
    assert names.asked == 30 + 100 * 40


def test_who_left_the_table_comes_back_from_zero() -> None:
    host = Host()
    host.live(5)
    host.take(work(who(5), 10))
    host.take(work(who(5), 10, processes=1))
    host.take(work(who(6), 1), at_ns=STAY_NS + 100)
    assert (5, 5_000_000) not in host.look().processes
    host.take(work(who(5), 3), at_ns=STAY_NS + 200)
    host.take(work(who(5), 4), at_ns=STAY_NS + 300)
    assert host.look().processes[5, 5_000_000].amounts[CPU] == 7


def test_two_programs_of_one_process_tell_its_name_by_turns() -> None:
    host = Host()
    host.live(5)
    for turn in range(3):
        for name in ("one", "two"):
            host.take(work(who(5, comm=name), 1), at_ns=10 + turn)
            line = host.look().processes[5, 5_000_000]
            assert line.name == name
    assert line.amounts[CPU] == 6
