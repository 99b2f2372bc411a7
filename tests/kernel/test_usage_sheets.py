# SPDX-License-Identifier: Apache-2.0
"""Sheets of usage: closed once, read as often as need be, and nothing lost when tables are full."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.harness.meter import MeterUnderTest, open_meter
from tests.kernel.harness.probes import eventually

from licagent.kernel import flows
from licagent.kernel.maps import Map, MappedArray, Queue
from licagent.kernel.numbers import METERS, METERS_SPILLED
from licagent.kernel.usage import FlowRow, Sheet
from licagent.kernel.usage_meter import UsageMeter
from licagent.kernel.usage_structs import Meter


@pytest.fixture
def own() -> Iterator[MeterUnderTest]:
    """A meter that nobody shares: these tests fill its tables."""
    with MeterUnderTest() as found:
        yield found


@pytest.fixture
def meter(own: MeterUnderTest) -> UsageMeter:
    found = own.meter
    assert isinstance(found, UsageMeter)
    return found


def in_cgroup(cgroup: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python inside the cgroup from before its first line."""
    return subprocess.run(
        [sys.executable, "-I", "-c", code],
        preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0"),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )


SEND = """
import socket
taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
taker.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range({count}):
    sender.sendto(bytes(100), taker.getsockname())
"""


def sent(rows: tuple[FlowRow, ...]) -> int:
    return sum(row.tx_payload_bytes for row in rows)


@pytest.mark.under_one_loader
def test_a_closed_sheet_comes_again_until_it_is_discarded(
    own: MeterUnderTest, meter: UsageMeter
) -> None:
    in_cgroup(own.tree.root, SEND.format(count=5))
    first = meter.close_sheet()
    in_cgroup(own.tree.root, SEND.format(count=7))
    again = meter.close_sheet()
    assert again == first
    assert sent(again.flows) == 500
    meter.discard(first.number)
    second = meter.close_sheet()
    assert second.number == first.number + 1
    assert sent(second.flows) == 700


@pytest.mark.under_one_loader
def test_who_comes_after_a_kill_finds_the_same_sheet(
    own: MeterUnderTest, meter: UsageMeter
) -> None:
    in_cgroup(own.tree.root, SEND.format(count=5))
    before = meter.close_sheet()
    other = open_meter(own.bpffs)
    try:
        other.begin()
        found = other.close_sheet()
        assert _facts(found) == _facts(before)
        assert (found.opened_ns, found.closed_ns) == (before.opened_ns, before.closed_ns)
        other.discard(found.number)
        other.discard(found.number)
        after = other.close_sheet()
        assert after.number == before.number + 1
        assert sent(after.flows) == 0
    finally:
        other.close()


def _facts(sheet: Sheet) -> tuple[object, ...]:
    return (sheet.number, set(sheet.work), set(sheet.flows), sheet.spilled_flows)


@pytest.mark.under_one_loader
def test_a_discard_that_was_cut_short_is_made_again(own: MeterUnderTest, meter: UsageMeter) -> None:
    in_cgroup(own.tree.root, SEND.format(count=5))
    sheet = meter.close_sheet()
    work = Map(own.pins.maps / "work")
    try:
        keys = [key for key in work.keys() if struct.unpack_from("=I", key)[0] == sheet.number]  # noqa: SIM118
        work.delete_many(keys[: len(keys) // 2])
        other = open_meter(own.bpffs)
        try:
            other.begin()
            other.discard(sheet.number)  # its number is in the ledger: the rest goes as well
        finally:
            other.close()
        assert not [key for key in work.keys() if struct.unpack_from("=I", key)[0] == sheet.number]  # noqa: SIM118
    finally:
        work.close()


@pytest.mark.under_one_loader
def test_an_open_sheet_is_not_discarded(meter: UsageMeter) -> None:
    with pytest.raises(ValueError, match="is not closed"):
        meter.discard(meter.open_number)


TALK = """
import socket, sys
taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
taker.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(taker.getsockname())
for line in sys.stdin:
    for _ in range(int(line)):
        sender.send(bytes(100))
    print("sent", flush=True)
"""


class Talker:
    """A process that sends so many datagrams of 100 bytes whenever it is told to."""

    def __init__(self, cgroup: Path, code: str = TALK) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0"),  # noqa: PLW1509
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, count: int) -> None:
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)

    def has_sent(self, within_s: float | None = 0) -> bool:
        """Whether what it began is done; to be asked until it is."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], within_s)[0]:
            return False
        assert self.process.stdout.readline() == "sent\n"
        return True

    def send(self, count: int) -> None:
        self.begin(count)
        assert self.has_sent(None)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture
def talker(own: MeterUnderTest) -> Iterator[Talker]:
    found = Talker(own.tree.root)
    yield found
    found.close()


def test_nothing_is_lost_while_sheets_change(meter: UsageMeter, talker: Talker) -> None:
    """While it sends; in parts, so that however slow this process is, several sheets have some."""
    total = 0
    for _ in range(5):
        talker.begin(20_000)
        is_sent = False
        while not is_sent:
            sheet = meter.close_sheet()
            total += sent(sheet.flows)
            meter.discard(sheet.number)
            is_sent = talker.has_sent()
    assert total + sent(meter.close_sheet().flows) == 100_000 * 100


def test_without_a_free_meter_the_bytes_are_counted_all_the_same(
    own: MeterUnderTest, meter: UsageMeter, talker: Talker
) -> None:
    queue = Queue(own.pins.maps / "free_meters")
    taken = []
    try:
        while (value := queue.pop()) is not None:
            taken.append(value)
        talker.send(9)
        sheet = meter.close_sheet()
    finally:
        for value in taken:
            queue.push(value)
        queue.close()
    assert len(taken) > METERS // 2
    assert sent(sheet.spilled_flows) == 900
    assert sent(sheet.flows) == 0
    meter.discard(sheet.number)
    talker.send(4)  # the same socket has its own as soon as there is one
    after = meter.close_sheet()
    assert sent(after.spilled_flows) == 0
    assert sent(after.flows) == 400


BURN = """
import socket, sys, time
taker = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(taker.getsockname())
peer, _ = taker.accept()
for line in sys.stdin:
    end = time.process_time() + float(line) / 1000
    while time.process_time() < end:
        pass
    sender.sendall(bytes(100 * int(line)))
    left = 100 * int(line)
    while left:
        left -= len(peer.recv(65536))
    print("sent", flush=True)
"""


def test_what_is_used_while_nothing_is_metered_stays_out(
    own: MeterUnderTest, meter: UsageMeter
) -> None:
    burner = Talker(own.tree.root, BURN)
    try:
        burner.send(20)
        first = _turn(meter)
        meter.end()
        assert meter.open_number == 0
        burner.send(400)
        meter.end()
        meter.begin()
        burner.send(30)
        second = _turn(meter)
    finally:
        burner.close()
    assert second.number > first.number
    assert sum(row.cpu_ns for row in second.work) < 300_000_000
    tcp = [row for row in second.flows if row.protocol == 6]
    # What its first packet finds acknowledged is not told from what went by before.
    assert sum(row.tx_payload_bytes for row in tcp) <= 3000
    assert sum(row.tx_wire_bytes for row in tcp) > 3000


@pytest.mark.under_one_loader
def test_a_life_before_the_meter_is_nobodys(own: MeterUnderTest, meter: UsageMeter) -> None:
    meter.end()
    burner = Talker(own.tree.root, BURN)
    burner.send(500)
    # Its account is taken away, as if the table had been full when it was met.
    meter.begin()
    work = Map(own.pins.maps / "accounts")
    try:
        work.delete_many(list(work.keys()))
    finally:
        work.close()
    burner.close()
    eventually(lambda: not _alive(burner.process.pid), "it is gone")
    sheet = meter.close_sheet()
    assert sum(row.cpu_ns for row in sheet.work) < 400_000_000


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.under_one_loader
def test_a_full_table_of_work_loses_no_nanosecond(own: MeterUnderTest, meter: UsageMeter) -> None:
    work = Map(own.pins.maps / "work")
    room = work.info.max_entries
    filler = [
        (struct.pack("=II QQQ IIII", 0, 0, 0, 0, number, 0, 0, 0, 0), bytes(work.info.value_size))
        for number in range(room)
    ]
    spent = """
import time
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
"""
    try:
        free = room - sum(1 for _ in work.keys())  # noqa: SIM118
        work.update_many(filler[:free])
        in_cgroup(own.tree.root, spent)
        eventually(lambda: _ended(meter.peek()), "the kernel frees the process a little later")
        sheet = meter.close_sheet()
    finally:
        work.delete_many(key for key, _value in filler)
        work.close()
    assert sheet.spilled_work is not None
    assert sheet.spilled_work.cpu_ns >= 200_000_000
    assert sheet.spilled_work.processes == 1


def _ended(sheet: Sheet) -> bool:
    return sheet.spilled_work is not None and sheet.spilled_work.processes > 0


def test_a_meter_that_was_taken_back_counts_for_its_new_owner_only(
    own: MeterUnderTest, meter: UsageMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "IDLE_SHEETS", 1)
    old = Talker(own.tree.root)
    try:
        old.send(3)
        first = _turn(meter)
        assert {row.who.pid for row in first.flows if row.tx_packets} == {old.process.pid}
        for _ in range(4):
            _turn(meter)
        index = Map(own.pins.maps / "flows")
        try:
            assert not list(index.keys())
        finally:
            index.close()
        # Every meter has had another owner by now, or none.
        queue = Queue(own.pins.maps / "free_meters")
        try:
            while (value := queue.pop()) is not None:
                queue.push(value)
                if struct.unpack("=I", value)[0] == METERS_SPILLED + 1:
                    break
        finally:
            queue.close()
        in_cgroup(own.tree.root, SEND.format(count=4))
        old.send(5)
        last = _turn(meter)
        by_pid = {row.who.pid: row.tx_payload_bytes for row in last.flows if row.tx_packets}
        assert by_pid.pop(old.process.pid) == 500
        assert list(by_pid.values()) == [400]
    finally:
        old.close()


def _turn(meter: UsageMeter) -> Sheet:
    sheet = meter.close_sheet()
    meter.discard(sheet.number)
    return sheet


def test_the_queue_of_free_meters_is_mended(own: MeterUnderTest, meter: UsageMeter) -> None:
    in_cgroup(own.tree.root, SEND.format(count=1))
    queue = Queue(own.pins.maps / "free_meters")
    meters: MappedArray[Meter] = MappedArray(own.pins.maps / "meters", Meter)
    try:
        for _ in range(100):  # taken back by a daemon that ended before it gave them away
            value = queue.pop()
            assert value is not None
            meters[struct.unpack("=I", value)[0]].key.is_free = 0
        meter.begin()
        meter.begin()
        free = []
        while (value := queue.pop()) is not None:
            free.append(struct.unpack("=I", value)[0])
    finally:
        queue.close()
        meters.close()
    index = Map(own.pins.maps / "flows")
    try:
        used = [struct.unpack("=I", value)[0] & (METERS - 1) for _key, value in index.items()]
    finally:
        index.close()
    assert len(free) == len(set(free))
    assert not set(free) & set(used)
    assert len(free) + len(used) == METERS - METERS_SPILLED - 1


def test_a_socket_that_is_older_than_the_meter_is_counted_from_now_on(
    own: MeterUnderTest, meter: UsageMeter
) -> None:
    taker = socket.socket()
    taker.bind(("127.0.0.1", 0))
    taker.listen()
    code = f"""
import socket, sys
peer = socket.create_connection(("127.0.0.1", {taker.getsockname()[1]}))
peer.sendall(bytes(5000))
print("ready", flush=True)
sys.stdin.readline()
open("{own.tree.root}/cgroup.procs", "w").write("0")
peer.sendall(bytes(300))
peer.close()
"""
    # Made outside the metered cgroup; a socket stays in the cgroup in which it was made.
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with taker, taker.accept()[0] as accepted:
        assert process.stdout is not None
        process.stdout.readline()
        process.communicate("\n", timeout=60)
        total = 0
        while data := accepted.recv(65536):
            total += len(data)
    assert total == 5300
    sheet = meter.close_sheet()
    assert sent(sheet.flows) == 0
    assert not [row for row in sheet.work if row.who.pid == process.pid and row.cpu_ns > 10**9]
