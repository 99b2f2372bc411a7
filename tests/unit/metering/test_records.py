# SPDX-License-Identifier: Apache-2.0
"""A sheet becomes records: sums stay exact, each line has its owner, license and quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.metering.worlds import Charge, Names, flow, who, work

from licagent.domain.footprint import FootprintKind
from licagent.domain.usage import Meter, Quality, UsageKind
from licagent.kernel.usage import FlowRow, Sheet, WorkRow, WorkRows
from licagent.metering.footprint import FootprintRow
from licagent.metering.owners import OwnerBook
from licagent.metering.processes import ProcessTable
from licagent.metering.records import (
    FLOW_METERS,
    WORK_METERS,
    Qualities,
    SheetRecords,
    flow_amounts,
    footprint_records,
    read_sheet,
    work_amounts,
)

amounts = st.integers(0, 2**40)
owners = st.builds(
    who,
    pid=st.integers(0, 2),
    uid=st.sampled_from((0, 1000, 0xFFFFFFFF)),
    cgroup=st.integers(0, 2),
    inode=st.sampled_from((0, 7, 8)),
)
works = st.builds(WorkRow, owners, amounts, amounts, amounts, amounts, amounts, amounts)
flows = st.builds(
    FlowRow,
    owners,
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from((6, 17)),
    st.booleans(),
    *[amounts] * 6,
)


def sheet(
    work_rows: Sequence[WorkRow] = (),
    flow_rows: tuple[FlowRow, ...] = (),
    spilled: WorkRow | None = None,
    spilled_flows: tuple[FlowRow, ...] = (),
) -> Sheet:
    return Sheet(1, 2_000_000, 7_000_000, work_rows, flow_rows, spilled, spilled_flows)


def read(
    found: Sheet, qualities: Qualities | None = None, names: Names | None = None
) -> SheetRecords:
    book = OwnerBook(names or Names())
    book.begin(Charge({1000: "acme"}))
    return read_sheet(found, book, qualities or Qualities({}), lambda at_ns: at_ns // 1_000_000)


@given(
    st.lists(works, max_size=8).map(tuple),
    st.lists(flows, max_size=8).map(tuple),
    st.none() | works,
    st.lists(flows, max_size=2).map(tuple),
)
def test_every_quantity_is_in_exactly_one_record(
    work_rows: tuple[WorkRow, ...],
    flow_rows: tuple[FlowRow, ...],
    spilled: WorkRow | None,
    spilled_flows: tuple[FlowRow, ...],
) -> None:
    found = read(sheet(work_rows, flow_rows, spilled, spilled_flows))
    expected = dict.fromkeys((*WORK_METERS, *FLOW_METERS), 0)
    given_away = dict(expected)
    for row in (*work_rows, *((spilled,) if spilled else ())):
        for meter, amount in zip(WORK_METERS, work_amounts(row), strict=True):
            expected[meter] += amount
            given_away[meter] += amount
    for line in (*flow_rows, *spilled_flows):
        for meter, amount in zip(FLOW_METERS, flow_amounts(line), strict=True):
            expected[meter] += amount
            # The host's interfaces do not see what stays on the loopback.
            given_away[meter] += 0 if line.is_loopback else amount
    for meter, amount in expected.items():
        assert sum(each.quantities.get(meter, 0) for each in found.records) == amount
        assert found.attributed.get(meter, 0) == given_away[meter]
    keys = [
        (each.kind, each.owner, each.license, each.resource, each.protocol, each.is_loopback)
        for each in found.records
    ]
    assert len(set(keys)) == len(keys)
    assert all(amount > 0 for each in found.records for amount in each.quantities.values())


def test_an_owner_has_names() -> None:
    (record,) = read(sheet((work(who(5), 10),))).records
    assert (record.start_unix_ms, record.end_unix_ms) == (2, 7)
    assert (record.license, record.resource, record.binding) == ("acme", "cpu", "b-acme")
    owner = record.owner
    assert (owner.unit, owner.cgroup, owner.user, owner.uid) == ("c1.service", "/c1", "u1000", 1000)
    assert (owner.executable, owner.pid) == ("/bin/prog", 5)
    assert owner.process_start_unix_ms == 5_000_005


def test_owners_without_a_name_say_what_is_known() -> None:
    rows = (
        work(who(2, uid=0, inode=0, comm="kworker/0:1"), 1),
        work(who(0, inode=9), 2),
        work(who(3, uid=0xFFFFFFFF, cgroup=2), 3),
        work(who(4, cgroup=0), 4),
    )
    thread, unknown, nobody, nowhere = (each.owner for each in read(sheet(rows)).records)
    assert thread.executable == "[kworker/0:1]"
    assert (unknown.executable, unknown.pid, unknown.process_start_unix_ms) == ("", 0, 0)
    assert (nobody.uid, nobody.user) == (-1, "")
    assert (nobody.unit, nobody.cgroup) == ("/c2", "/c2")
    assert (nowhere.unit, nowhere.cgroup) == ("", "")


def test_a_program_seen_later_has_its_name_with_the_next_sheet() -> None:
    names = Names()
    book = OwnerBook(names)
    charge = Charge()
    book.begin(charge)
    unseen, seen = who(0, inode=9), who(5)
    assert book.of(unseen).owner.executable == ""
    assert book.of(seen).owner.executable == "/bin/prog"
    names.executables[9] = "/bin/later"
    names.executables[7] = "/bin/other"
    assert book.of(unseen).owner.executable == ""  # the sheet's records agree with one another
    book.begin(charge)
    assert book.of(unseen).owner.executable == "/bin/later"
    assert book.of(seen).owner.executable == "/bin/prog"
    book.begin(Charge())  # another policy: all is looked up anew
    assert book.of(seen).owner.executable == "/bin/other"


def test_flows_are_charged_as_the_kernel_decided() -> None:
    rows = (
        flow(who(5), license=3, resource=4, tx_wire_bytes=10, is_loopback=True),
        flow(who(5), license=3, resource=4, tx_wire_bytes=5, protocol=17),
        flow(who(5), tx_wire_bytes=0),
    )
    loopback, wire = read(sheet(flow_rows=rows)).records
    assert (loopback.kind, loopback.license, loopback.resource) == (UsageKind.NETWORK, "l3", "r4")
    assert (loopback.is_loopback, loopback.protocol) == (True, 6)
    assert (wire.is_loopback, wire.protocol) == (False, 17)


def test_qualities_stand_in_the_records_they_are_of() -> None:
    qualities = Qualities(
        {
            Meter.MEMORY_BYTE_MS: Quality.ESTIMATED,
            Meter.CANCELLED_BYTES: Quality.UNSUPPORTED,
            Meter.TX_PAYLOAD_BYTES: Quality.ESTIMATED,
        }
    )
    rows = (work(who(5), 10, memory_byte_ms=4), work(who(6), 10))
    found = read(sheet(rows, (flow(who(5), tx_payload_bytes=1),)), qualities).records
    assert [each.estimated for each in found] == [
        {Meter.MEMORY_BYTE_MS},
        frozenset(),
        {Meter.TX_PAYLOAD_BYTES},
    ]
    assert [each.unsupported for each in found] == [
        {Meter.CANCELLED_BYTES},
        {Meter.CANCELLED_BYTES},
        frozenset(),
    ]


def test_footprints_become_records_of_storage_and_gaps() -> None:
    row = FootprintRow(
        name="home",
        kind=FootprintKind.USER,
        path="/home",
        resource="disk",
        uid=1000,
        user="alice",
        project=-1,
        start_unix_ms=100,
        end_unix_ms=200,
        stored_byte_ms=4096,
        stored_bytes=41,
        inodes=2,
        quality=Quality.ESTIMATED,
        detail="a walk",
    )
    (record,) = footprint_records([row], Charge())
    assert record.kind is UsageKind.STORAGE
    assert (record.license, record.resource) == ("stored-1000", "disk")
    assert (record.owner.unit, record.owner.user, record.owner.uid) == ("home", "alice", 1000)
    assert record.quantities == {Meter.STORED_BYTE_MS: 4096}
    assert record.estimated == {Meter.STORED_BYTE_MS}
    gap, record = footprint_records([replace(row, uncounted_ms=30, uid=-1)], Charge())
    assert (gap.kind, gap.start_unix_ms, gap.end_unix_ms) == (UsageKind.GAP, 70, 100)
    assert record.license == "stored-None"


@given(st.lists(works, max_size=8).map(tuple))
def test_packed_rows_say_what_rows_say(rows: tuple[WorkRow, ...]) -> None:
    owners_of = {str(number).encode(): row.who for number, row in enumerate(rows)}
    packed = WorkRows(list(owners_of), [work_amounts(row) for row in rows], owners_of.__getitem__)
    assert tuple(packed) == rows
    assert [packed[at] for at in range(len(rows))] == list(rows)
    assert tuple(packed[1:]) == rows[1:]
    one, other = read(sheet(packed)), read(sheet(rows))
    assert (one.records, one.attributed) == (other.records, other.attributed)
    tables = []
    for each in (packed, rows):
        book, table = OwnerBook(Names()), ProcessTable()
        for at_ns in (10, 20):
            book.begin(Charge({1000: "acme"}))
            taken = replace(sheet(each), closed_ns=at_ns)
            table.take(taken, book, book.of_work(taken.work) if at_ns == 20 else None)
        tables.append(table.look([], book, lambda pids: {}, 30, 1)[0])
    for name in ("units", "licenses", "short", "processes"):
        found, expected = (getattr(table, name) for table in tables)
        assert {key: line.amounts for key, line in found.items()} == {
            key: line.amounts for key, line in expected.items()
        }
    assert sum(line.amounts[0] for line in tables[0].units.values()) == 2 * sum(
        row.cpu_ns for row in rows
    )
