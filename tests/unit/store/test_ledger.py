# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from licagent.store.errors import StateWriteFailed
from licagent.store.filelayer import OsFiles
from licagent.store.frames import SMALL_MARK_BYTES
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import (
    FRAME_RECORDS,
    PAYLOAD_MAX_BYTES,
    Batch,
    Gap,
    LedgerBusy,
    LedgerFull,
    LedgerLimits,
)
from licagent.store.ledger_verify import verify_folder
from licagent.store.usagechain import batch_message, chain_hash, is_signed

SMALL = LedgerLimits(spool_max_bytes=40_000, segment_bytes=4000, keep_acknowledged_bytes=8000)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


def opened(
    folder: Path,
    *,
    limits: LedgerLimits | None = None,
    host_id: str = "h1",
    boot_id: str = "b1",
    clock: Clock | None = None,
) -> Ledger:
    return Ledger(
        folder,
        boot_id=boot_id,
        host_id=lambda: host_id,
        limits=limits,
        now_unix_ms=clock or Clock(),
    )


def delivered(ledger: Ledger, epoch: int | None = None) -> list[Batch | Gap]:
    got: list[Batch | Gap] = []
    epoch = ledger.epoch if epoch is None else epoch
    (state,) = [each for each in ledger.epochs() if each.epoch == epoch]
    after = state.acked_sequence
    while items := list(ledger.batches(after, limit_bytes=5000, epoch=epoch)):
        for item in items:
            hash_ = item.hash if isinstance(item, Batch) else item.next_previous_hash
            assert ledger.acknowledge(item.last, hash_, epoch=epoch)
            after = item.last
        got += items
    return got


def noise(count: int, length: int = 100) -> list[bytes]:
    return [os.urandom(length) for _ in range(count)]


def test_records_come_back_signed_and_chained_over_restarts(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    ledger = opened(folder)
    assert ledger.marks == {}
    assert ledger.settled
    assert (ledger.next_sequence, ledger.first_unacknowledged) == (1, 1)
    assert ledger.commit([b"a", b"b"], {"sheet": b"1"}).last == 2
    empty = ledger.commit([], {"sheet": b"2", "footprint": bytes(1000)})
    assert (empty.first, empty.last) == (3, 2)
    epoch, key = ledger.epoch, ledger.public_key
    ledger.close()
    ledger.close()
    ledger = opened(folder, boot_id="b2")
    assert ledger.marks == {"sheet": b"2", "footprint": bytes(1000)}
    assert (ledger.epoch, ledger.public_key) == (epoch, key)
    assert ledger.commit([b"c", b""], {}).first == 3
    one, two = ledger.batches(0, limit_bytes=10**6)
    assert isinstance(one, Batch)
    assert isinstance(two, Batch)
    assert (one.records, one.boot_id, one.first) == ((b"a", b"b"), "b1", 1)
    assert (two.records, two.boot_id, two.first) == ((b"c", b""), "b2", 3)
    assert one.previous_hash == bytes(32)
    assert two.previous_hash == one.hash == chain_hash(bytes(32), 1, [b"a", b"b"])
    message = batch_message(
        host_id="h1", boot_id="b2", epoch=epoch, first=3, last=4, chain=two.hash
    )
    assert is_signed(key, two.signature, message)
    assert not is_signed(key, two.signature, message + b"x")
    assert list(ledger.records()) == [(1, b"a"), (2, b"b"), (3, b"c"), (4, b"")]
    assert ledger.backlog_records == 4
    delivered(ledger)
    assert ledger.backlog_records == 0
    assert ledger.first_unacknowledged == ledger.next_sequence == 5
    assert not ledger.problems
    ledger.close()
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_one_writer(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    with pytest.raises(LedgerBusy):
        opened(tmp_path / "ledger")
    ledger.commit([b"a"], {})
    assert verify_folder(tmp_path / "ledger").records == 1  # reading needs no lock
    ledger.close()
    opened(tmp_path / "ledger").close()
    with pytest.raises(StateWriteFailed):
        opened(tmp_path / "no" / "ledger")


def test_large_commits_are_split_into_batches(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    ledger.commit([b"x"] * 2500 + [bytes(400_000)] * 3, {})
    batches = list(ledger.batches(0, limit_bytes=10**9))
    assert all(isinstance(each, Batch) for each in batches)
    sizes = [len(each.records) for each in batches if isinstance(each, Batch)]
    assert sizes == [1000, 1000, 501, 1, 1]
    with pytest.raises(ValueError, match="longer"):
        ledger.commit([bytes(PAYLOAD_MAX_BYTES + 1)], {})
    with pytest.raises(ValueError, match="too much"):
        ledger.commit([b""] * (FRAME_RECORDS + 1), {})
    with pytest.raises(ValueError, match="too much"):
        ledger.commit([], {"m": bytes(17 * 1024 * 1024)})
    assert ledger.next_sequence == 2504
    ledger.close()


def test_the_bound_holds_and_the_interval_grows_before(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    ledger = opened(folder, limits=SMALL)
    factors = [ledger.interval_factor]
    while factors[-1] < 8:
        ledger.commit(noise(10), {})
        factors.append(ledger.interval_factor)
    while ledger.size_bytes < SMALL.spool_max_bytes - 3000:
        ledger.commit(noise(10), {})
    with pytest.raises(LedgerFull):
        ledger.commit(noise(100), {})
    assert factors[0] == 1
    assert factors == sorted(factors)
    assert "full" in ledger.problems[0]
    held = ledger.next_sequence
    on_disk = sum(file.stat().st_size for file in folder.glob("*.usage"))
    assert on_disk == ledger.size_bytes <= SMALL.spool_max_bytes
    with pytest.raises(LedgerFull):
        ledger.commit(noise(100), {})
    assert ledger.next_sequence == held
    # Acknowledged records make room at once; the history that is kept yields.
    assert not any(isinstance(each, Gap) for each in delivered(ledger))
    ledger.commit(noise(10), {})
    assert not ledger.problems
    assert ledger.interval_factor == 1
    assert ledger.size_bytes <= SMALL.keep_acknowledged_bytes + 2 * SMALL.segment_bytes
    ledger.close()


def test_a_host_of_its_own_drops_the_oldest_and_names_it(tmp_path: Path) -> None:
    limits = LedgerLimits(spool_max_bytes=40_000, segment_bytes=4000, when_full="drop_oldest")
    ledger = opened(tmp_path / "ledger", limits=limits)
    for _ in range(100):
        ledger.commit(noise(10), {})
    assert ledger.size_bytes <= 40_000
    first = next(ledger.records())[0]
    assert [number for number, _ in ledger.records()] == list(range(first, 1001))
    assert first > 500
    dropped = [gap for gap in ledger.gaps if gap.reason.startswith("dropped")]
    assert (dropped[0].first, dropped[-1].last) == (1, first - 1)
    ledger.close()
    ledger = opened(tmp_path / "ledger", limits=limits)
    gap, *batches = delivered(ledger)
    assert isinstance(gap, Gap)
    assert (gap.first, gap.last, gap.reason[:7]) == (1, first - 1, "dropped")
    assert all(isinstance(each, Batch) for each in batches)
    assert ledger.verify().is_intact
    ledger.close()


def test_acknowledged_history_goes_with_age(tmp_path: Path) -> None:
    clock = Clock()
    limits = LedgerLimits(segment_bytes=2000, keep_acknowledged_ms=3_600_000)
    ledger = opened(tmp_path / "ledger", limits=limits, clock=clock)
    for _ in range(10):
        ledger.commit(noise(20), {})
        clock.now += 60_000
    delivered(ledger)
    ledger.commit([], {})
    assert len(list(ledger.records())) == 200
    assert len(list(ledger.records(clock.now - 5 * 60_000))) == 100
    clock.now += 3_600_000
    ledger.commit([b"x"], {})
    ledger.commit([b"x"], {})
    assert len(list(ledger.records())) < 40
    # A clock that is set back or far ahead takes nothing that is not acknowledged.
    for step in (-(10**10), 10**12):
        clock.now += step
        ledger.commit(noise(50), {})
    clock.now = -5
    ledger.commit(noise(50), {})
    assert sum(len(e.records) for e in delivered(ledger) if isinstance(e, Batch)) == 152
    ledger.close()


def test_a_server_that_knows_less_gets_what_is_held_and_the_rest_by_name(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger", limits=SMALL)
    for _ in range(40):
        ledger.commit(noise(10), {})
        delivered(ledger)
    held = next(ledger.records())[0]
    assert held > 1
    gap, *batches = ledger.batches(0, limit_bytes=10**9)
    assert isinstance(gap, Gap)
    assert (gap.first, gap.last) == (1, held - 1)
    assert "acknowledged before" in gap.reason
    assert sum(len(e.records) for e in batches if isinstance(e, Batch)) == 400 - gap.last
    ledger.close()


def test_a_new_epoch_is_delivered_beside_the_backlog(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    first = ledger.begin_epoch("nothing is in this one")
    assert first == ledger.epoch
    ledger.commit(noise(30), {})
    second = ledger.begin_epoch("a backlog")
    assert second > first
    assert ledger.epoch == first
    ledger.commit([b"live"], {"sheet": b"2"})
    ledger.close()
    ledger = opened(tmp_path / "ledger")
    assert [each.epoch for each in ledger.epochs()] == [first, second]
    assert [each.is_current for each in ledger.epochs()] == [False, True]
    (live,) = delivered(ledger, second)
    assert isinstance(live, Batch)
    assert live.records == (b"live",)
    assert live.first == 1
    assert ledger.epoch == first
    assert ledger.backlog_records == 30
    ledger.commit([], {"sheet": b"3"})
    ledger.close()
    ledger = opened(tmp_path / "ledger")
    assert ledger.backlog_records == 30
    assert ledger.epochs()[1].acked_sequence == 1
    assert ledger.past_epochs() == ()
    delivered(ledger, first)
    assert ledger.epoch == second
    assert [each.epoch for each in ledger.epochs()] == [second]
    # It can still be had, by a control plane that lost it.
    (past,) = ledger.past_epochs()
    assert (past.epoch, past.acked_sequence, past.is_current) == (first, 30, False)
    assert list(ledger.batches(0, limit_bytes=10**9, epoch=first))
    assert len(list(ledger.records())) == 31
    assert ledger.verify().is_intact
    ledger.close()


def test_a_host_that_becomes_another_one(tmp_path: Path) -> None:
    host = ""
    ledger = Ledger(tmp_path / "ledger", boot_id="b", host_id=lambda: host)
    ledger.commit([b"before it had a name"], {})
    host = "h1"
    ledger.commit([b"one"], {})
    epoch = ledger.epoch
    assert ledger.commit([b"one"], {}).epoch == epoch
    host = ""
    other = ledger.commit([b"left"], {})
    assert other.epoch != epoch
    assert len(ledger.epochs()) == 2  # it may come back
    host = "h2"
    assert ledger.commit([b"two"], {}).epoch == other.epoch
    host = "h1"
    ledger.commit([b"one again"], {})
    assert ledger.epochs()[0].epoch == epoch
    (gap,) = ledger.gaps
    assert (gap.epoch, gap.first, gap.last) == (other.epoch, 1, 2)
    assert "another" in gap.reason
    assert [
        each.host_id for each in ledger.batches(0, limit_bytes=10**6) if isinstance(each, Batch)
    ] == ["", "h1", "h1"]
    assert list(ledger.batches(0, limit_bytes=1, epoch=other.epoch)) == []
    assert len(list(ledger.records())) == 6  # for the host's own reports nothing is gone
    ledger.close()


@pytest.mark.parametrize("size", [SMALL_MARK_BYTES, SMALL_MARK_BYTES + 1, 200_000])
def test_marks_of_all_sizes(tmp_path: Path, size: int) -> None:
    ledger = opened(tmp_path / "ledger")
    marks = {"sheet": os.urandom(size), "footprint": os.urandom(size)}
    ledger.commit([b"x"], marks)
    ledger.close()
    ledger = opened(tmp_path / "ledger")
    assert ledger.marks == marks
    assert [r for _, r in ledger.records()] == [b"x"]
    ledger.close()


def test_reading_delivering_and_dropping_beside_the_writer(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger", limits=SMALL)
    count, done = 120, threading.Event()
    errors: list[BaseException] = []
    arrived: list[bytes] = []
    sent: list[bytes] = []

    def deliver() -> None:
        try:
            while not (done.is_set() and ledger.backlog_records == 0):
                for item in delivered(ledger):
                    assert isinstance(item, Batch)
                    arrived.extend(item.records)
        except BaseException as error:  # noqa: BLE001 -- told to the test
            errors.append(error)

    def read() -> None:
        try:
            while not done.is_set():
                list(ledger.records())
                report = ledger.verify()
                assert report.is_intact, (report.gaps, report.problems)
        except BaseException as error:  # noqa: BLE001 -- told to the test
            errors.append(error)

    threads = [threading.Thread(target=deliver), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        while len(sent) < count * 10 and not errors:
            payloads = noise(10)
            try:
                ledger.commit(payloads, {})
            except LedgerFull:
                continue
            sent += payloads
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert arrived == sent
    assert not ledger.gaps
    ledger.close()


WRITER = """
import sys
from pathlib import Path
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import LedgerLimits
ledger = Ledger(Path(sys.argv[1]), boot_id="b", limits=LedgerLimits(segment_bytes=20_000))
number = int(ledger.marks.get("number", b"0"))
while True:
    number += 1
    ledger.commit([b"%d" % number] * 7, {"number": b"%d" % number})
    print(number, flush=True)
"""


def test_killed_at_any_moment_on_a_real_disk(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    last = 0
    for kill_after in (1, 2, 7, 30):
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(kill_after):
                last = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                last = int(line)
        ledger = opened(folder, host_id="")
        marked = int(ledger.marks["number"])
        assert marked in (last, last + 1)
        numbers = [int(payload) for _, payload in ledger.records()]
        assert numbers == [number for number in range(1, marked + 1) for _ in range(7)]
        assert ledger.verify().is_intact
        assert not ledger.problems
        ledger.close()


class SlowFiles(OsFiles):
    """Its fsync waits until it may go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.waits = threading.Event()

    def fsync(self, handle: int) -> None:
        self.waits.set()
        assert self.may_go_on.wait(60)
        super().fsync(handle)


def test_a_status_does_not_wait_for_a_slow_disk(tmp_path: Path) -> None:
    files = SlowFiles()
    ledger = Ledger(tmp_path / "ledger", boot_id="b", files=files)
    ledger.commit([b"one"], {})
    files.may_go_on.clear()
    files.waits.clear()
    thread = threading.Thread(target=ledger.commit, args=([b"two"], {}))
    thread.start()
    try:
        assert files.waits.wait(60)
        told: list[object] = []
        reader = threading.Thread(
            target=lambda: told.extend(
                [ledger.size_bytes, ledger.problems, ledger.gaps, ledger.epochs(), ledger.epoch,
                 ledger.backlog_records, ledger.interval_factor, ledger.marks, ledger.settled,
                 ledger.next_sequence, ledger.set_when_full("hold"), ledger.trouble]
            )
        )  # fmt: skip
        reader.start()
        reader.join(60)
        assert len(told) == 12
    finally:
        files.may_go_on.set()
        thread.join()
    assert ledger.next_sequence == 3
    ledger.close()
