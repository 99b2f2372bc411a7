# SPDX-License-Identifier: Apache-2.0
"""The fallback meter against the references of the kernel's meter, with wider tolerances.

Wider where threads end: their last stretch on the CPU is in no exit record. The cgroup's counter
has it, and what it has more is divided among those that ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.accuracy import Accuracy, needed
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.disk import Disk
from tests.kernel.harness.meter import Work, cgroup_ids, once
from tests.kernel.harness.programs import PYTHON
from tests.kernel.harness.work import MS, Worker, has, run_time_of

from licagent.domain.usage import Meter, Quality
from licagent.metering.fallback.rows import FallbackRow, FallbackSheet
from licagent.metering.fallback.sampler import FallbackMeter

pytest_plugins = ["tests.kernel.harness.metered"]
pytestmark = once

MIB: Final = 1 << 20
SIZE: Final = 32 * MIB
METADATA: Final = MIB // 2
OF_THREADS: Final = 0.05
"""wait4 does not know of a thread's last microseconds on the CPU."""
TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass
class Used:
    """Rows of one cgroup, from as many sheets as there were."""

    cgroup: Path
    rows: list[FallbackRow]

    def add(self, sheet: FallbackSheet) -> None:
        assert sheet.lost == 0, "exit records were dropped: the socket's buffer is too small"
        ids = cgroup_ids(self.cgroup)
        self.rows += [row for row in sheet.work if row.who.cgroup in ids]

    def work(self) -> Work:
        total = Work()
        for row in self.rows:
            for each in fields(total):
                setattr(total, each.name, getattr(total, each.name) + getattr(row, each.name))
        return total


def cut(meter: FallbackMeter) -> FallbackSheet:
    sheet = meter.close_sheet()
    meter.discard(sheet.number)
    return sheet


@contextmanager
def measuring(meter: FallbackMeter, cgroup: Path) -> Iterator[Used]:
    cut(meter)
    used = Used(cgroup, [])
    yield used
    used.add(cut(meter))


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it stands: beside others it may take until it runs next."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    time.sleep(0.05)


@pytest.fixture(scope="module")
def meter() -> Iterator[FallbackMeter]:
    made = FallbackMeter(boot_id="test")
    try:
        made.begin()
        if made.source != "taskstats":
            pytest.skip(made.problem)
        yield made
    finally:
        made.close()


@pytest.fixture
def place() -> Iterator[Path]:
    with CgroupTree() as tree:
        yield tree.root


def test_it_says_how_far_it_can_be_trusted(meter: FallbackMeter) -> None:
    assert meter.quality == {
        Meter.CPU_NS: Quality.ESTIMATED,
        Meter.READ_BYTES: Quality.EXACT,
        Meter.WRITE_BYTES: Quality.EXACT,
        Meter.CANCELLED_BYTES: Quality.EXACT,
        Meter.MEMORY_BYTE_MS: Quality.ESTIMATED,
        Meter.PROCESSES: Quality.EXACT,
    }


def test_processes_of_a_millisecond(
    meter: FallbackMeter, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    with measuring(meter, place) as used:
        ran = worker.work(place, "storm", 3_000, MS, 4)
    found = used.work()
    what = "fallback: 3,000 processes of 1 ms"
    accuracy.check(f"{what}: CPU", "wait4 rusage", found.cpu_ns, ran.cpu_ns, "ns", 0.03)
    accuracy.check(f"{what}: ended", "forks and the parent", found.processes, 3_001, "processes")
    # One row for all that lived and died between two samples.
    assert len([row for row in used.rows if not row.who.pid]) < 5
    assert {row.who.executable for row in used.rows if row.processes} == {str(worker.path)}


@pytest.mark.measured_again
def test_one_process_read_many_times(
    meter: FallbackMeter, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    with (
        measuring(meter, place) as used,
        worker.started(place, *worker.argv("burn", 800 * MS)) as runs,
    ):
        while runs.process.poll() is None:
            used.add(cut(meter))
            time.sleep(0.05)
        ran = runs.finish()
    found = used.work()
    assert found.processes == 1
    needed([row for row in used.rows if row.who.pid], "it had no row of its own")
    accuracy.check(
        "fallback: one process in many sheets: CPU",
        "wait4 rusage",
        found.cpu_ns,
        ran.cpu_ns,
        "ns",
        0.005,
    )


def test_threads_that_come_and_go(
    meter: FallbackMeter, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    with (
        measuring(meter, place) as used,
        worker.started(place, *worker.argv("threads", 300, MS, 16)) as runs,
    ):
        while runs.process.poll() is None:
            meter.collect()
            time.sleep(0.02)
        ran = runs.finish()
    found = used.work()
    assert (ran.status, found.processes) == (0, 1)
    what = "fallback: 300 threads of 1 ms: CPU"
    accuracy.check(what, "wait4 rusage", found.cpu_ns, ran.cpu_ns, "ns", OF_THREADS)


def test_programs_that_end_at_once(
    meter: FallbackMeter, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    """The worst case: most of what /bin/true uses is beginning and ending."""
    with measuring(meter, place) as used:
        ran = worker.work(place, "spawn", 300, "/bin/true")
    found = used.work()
    what = "fallback: 300 executions of /bin/true"
    accuracy.check(f"{what}: CPU", "wait4 rusage", found.cpu_ns, ran.cpu_ns, "ns", 0.05)
    accuracy.check(f"{what}: ended", "spawns and the parent", found.processes, 301, "processes")


def test_storm_of_stress_ng(
    meter: FallbackMeter, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    assert has("stress-ng"), "stress-ng is not installed: ./dev setup"
    storm = ("--pthread", "2", "--pthread-ops", "3000", "--pthread-max", "64")
    with measuring(meter, place) as used:
        ran = worker.run(place, "stress-ng", "--temp-path", "/tmp", "--timeout", "20", *storm)
    assert ran.status == 0, ran
    found = used.work()
    what = "fallback: stress-ng storm of threads: CPU"
    accuracy.check(what, "wait4 rusage", found.cpu_ns, ran.cpu_ns, "ns", 2 * OF_THREADS)


# ---------------------------------------------------------------------- storage


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    subprocess.run(["fio", "--version"], check=True, capture_output=True)
    with Disk() as made:
        yield made


FIO: Final = ("fio", "--name=job", "--output-format=json", "--fallocate=none", f"--size={SIZE}")
WAYS: Final = {
    "direct": ("--direct=1", "--ioengine=psync", "--bs=64k"),
    "buffered": ("--ioengine=psync", "--bs=64k"),
    "mmap": ("--ioengine=mmap", "--bs=4k"),
    "io_uring, direct": ("--direct=1", "--ioengine=io_uring", "--iodepth=16", "--bs=16k"),
}


@pytest.mark.parametrize("way", WAYS)
def test_reading_and_writing(  # noqa: PLR0917 - fixtures
    way: str, meter: FallbackMeter, worker: Worker, place: Path, disk: Disk, accuracy: Accuracy
) -> None:
    assert has("fio"), "fio is not installed: ./dev setup"
    path = disk.file("f", SIZE)
    for what, options in (("read", ()), ("write", ("--end_fsync=1", "--overwrite=1"))):
        before = disk.moved()
        with measuring(meter, place) as used:
            ran = worker.run(
                place, *FIO, f"--filename={path}", *WAYS[way], f"--rw={what}", *options
            )
        moved = disk.moved() - before
        job = json.loads(ran.out[ran.out.index("{") :])["jobs"][0]
        if job["error"]:
            pytest.skip(f"the kernel lacks what fio needs for {way}")
        found = used.work()
        counted, expected = (
            (found.read_bytes, moved.read) if what == "read" else (found.write_bytes, moved.written)
        )
        accuracy.check(
            f"fallback: {what}, {way}",
            "block device",
            counted,
            expected,
            "bytes",
            0.01,
            slack=METADATA,
        )


@pytest.mark.measured_again
def test_written_and_removed_before_it_is_stored(
    meter: FallbackMeter, worker: Worker, place: Path, disk: Disk, accuracy: Accuracy
) -> None:
    path = disk.path / "short-lived"
    before = disk.moved()
    with measuring(meter, place) as used:
        ran = worker.run(place, "/bin/sh", "-c", f"head -c {SIZE} /dev/zero > {path}; rm {path}")
    assert ran.status == 0, ran
    stored = (disk.moved() - before).written
    needed(stored < SIZE / 2, "the kernel wrote it before it was removed")
    found = used.work()
    what = "fallback: written, then removed"
    slack = METADATA
    written, cancelled = found.write_bytes, found.cancelled_bytes
    accuracy.check(f"{what}: written", "the program", written, SIZE, "bytes", 0.01, slack=slack)
    removed = SIZE - stored
    accuracy.check(
        f"{what}: cancelled", "the program", cancelled, removed, "bytes", 0.01, slack=2 * slack
    )


def test_a_reaped_childs_input_is_not_its_parents(
    meter: FallbackMeter, worker: Worker, place: Path, disk: Disk, accuracy: Accuracy
) -> None:
    paths = [disk.file(f"c{number}", 8 * MIB) for number in range(2)]
    script = "".join(f"cat {path} > /dev/null; " for path in paths) + "echo read; read line"
    before = disk.moved()
    with (
        measuring(meter, place) as used,
        worker.started(place, "/bin/sh", "-c", script) as runs,
    ):
        assert runs.line() == "read"
        used.add(cut(meter))
        parent = sum(row.read_bytes for row in used.rows if row.who.pid == runs.pid)
        runs.finish()
    moved = disk.moved() - before
    assert parent < METADATA
    accuracy.check(
        "fallback: children that are reaped: read",
        "block device",
        used.work().read_bytes,
        moved.read,
        "bytes",
        0.01,
        slack=METADATA,
    )


# ---------------------------------------------------------------------- whose it is


def test_a_thread_that_calls_exec_counts_once(
    meter: FallbackMeter, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    """It takes the id of the process's first thread, and brings its own count along."""
    program = (
        "import os, threading, time\n"
        "def burn(s):\n"
        "    end = time.thread_time() + s\n"
        "    while time.thread_time() < end: pass\n"
        "def work():\n"
        "    burn(0.1); print('burnt', flush=True); input()\n"
        "    os.execv('/bin/sleep', ['sleep', '0.1'])\n"
        "burn(0.1)\n"
        "t = threading.Thread(target=work); t.start(); t.join()\n"
    )
    with (
        measuring(meter, place) as used,
        worker.started(place, *PYTHON, "-c", program) as runs,
    ):
        assert runs.line() == "burnt"
        used.add(cut(meter))
        assert runs.process.stdin is not None
        runs.process.stdin.write("\n")
        runs.process.stdin.flush()
        ran = runs.finish()
    accuracy.check(
        "fallback: exec by another thread: CPU",
        "wait4 rusage",
        used.work().cpu_ns,
        ran.cpu_ns,
        "ns",
        0.03,
    )


def test_exec_and_user_cut_the_row(meter: FallbackMeter, worker: Worker, place: Path) -> None:
    program = (
        "import os, time\n"
        "def burn(s):\n"
        "    end = time.process_time() + s\n"
        "    while time.process_time() < end: pass\n"
        "burn(0.2); print('as root', flush=True); input()\n"
        "os.setuid(4321); print('changed', flush=True); input()\n"
        "burn(0.2); print('as 4321', flush=True); input()\n"
    )
    with (
        measuring(meter, place) as used,
        worker.started(place, *PYTHON, "-c", program) as runs,
    ):
        for said in ("as root", "changed", "as 4321"):
            assert runs.line() == said
            if said == "changed":
                meter.collect()  # from here on it is the other user's
            else:
                used.add(cut(meter))
            assert runs.process.stdin is not None
            runs.process.stdin.write("\n")
            runs.process.stdin.flush()
        runs.finish()
    by_uid = {uid: sum(row.cpu_ns for row in used.rows if row.who.uid == uid) for uid in (0, 4321)}
    assert by_uid[4321] > 190 * MS
    assert by_uid[0] > 190 * MS


# ---------------------------------------------------------------------- lives of the meter


def test_a_killed_meter_goes_on_from_what_was_committed(worker: Worker, place: Path) -> None:
    """As the daemon: sheet and baseline are committed, then it is killed, and another begins."""
    made: list[FallbackMeter] = []

    def begin(baseline: bytes) -> FallbackMeter:
        meter = FallbackMeter(boot_id="test", baseline=baseline, wanted="taskstats")
        made.append(meter)
        meter.begin()
        return meter

    try:
        meter = begin(b"")
        first_number = meter.open_number
        with worker.started(place, *PYTHON, "-c", "while True: pass") as runs:
            used = Used(place, [])
            time.sleep(0.1)
            sheet = cut(meter)
            used.add(sheet)
            time.sleep(0.1)
            assert meter._child is not None
            os.kill(meter._child.pid, signal.SIGKILL)  # with what it counted since
            meter._child.wait()
            time.sleep(0.1)
            meter = begin(sheet.baseline)
            assert meter.open_number > first_number
            pid = runs.pid
            stop(pid)
            used.add(cut(meter))
            expected = run_time_of(pid)
            counted = sum(row.cpu_ns for row in used.rows if row.who.pid == pid)
            os.kill(pid, signal.SIGKILL)
        assert counted == expected  # to the nanosecond: the killed one's count was made again
    finally:
        for one in made:
            one.close()


def test_a_collector_that_dies_is_replaced_and_told_of(place: Path, worker: Worker) -> None:
    meter = FallbackMeter(boot_id="test")
    try:
        meter.begin()
        cut(meter)
        with worker.started(place, *PYTHON, "-c", "while True: pass") as runs:
            pid = runs.pid
            before = run_time_of(pid)
            assert meter._child is not None
            os.kill(meter._child.pid, signal.SIGKILL)
            sheet = meter.close_sheet()
            assert meter.close_sheet() is sheet  # until it is discarded
            assert sheet.lost == 1
            counted = sum(row.cpu_ns for row in sheet.work if row.who.pid == pid)
            assert before <= counted <= run_time_of(pid)
    finally:
        meter.close()


def test_what_lost_records_is_estimated() -> None:
    from licagent.metering.fallback.collector import Collector

    collector = Collector("test", b"")
    try:
        collector._source.lost += 1
        sheet = collector.sheet(close=True)
        assert (sheet["lost"], set(sheet["quality"].values())) == (1, {"estimated"})
        after = collector.sheet(close=True)
        assert after["lost"] == 0
    finally:
        collector.close()


# ---------------------------------------------------------------------- psutil alone


def test_psutil_alone_counts_what_lives(worker: Worker, place: Path, accuracy: Accuracy) -> None:
    meter = FallbackMeter(boot_id="test", wanted="psutil")
    try:
        meter.begin()
        assert meter.source == "psutil"
        assert meter.quality[Meter.CANCELLED_BYTES] is Quality.UNSUPPORTED
        cut(meter)
        used = Used(place, [])
        with worker.started(place, *PYTHON, "-c", "while True: pass") as runs:
            time.sleep(0.5)
            pid = runs.pid
            stop(pid)
            used.add(cut(meter))
            expected = run_time_of(pid)
            counted = sum(row.cpu_ns for row in used.rows if row.who.pid == pid)
            os.kill(pid, signal.SIGKILL)
            runs.process.wait(60)
        accuracy.check(
            "psutil alone: a live process: CPU",
            "schedstat",
            counted,
            expected,
            "ns",
            slack=2 * TICK_NS,
        )
        used.add(cut(meter))
        assert used.work().processes == 1
    finally:
        meter.close()


def test_where_taskstats_are_refused_psutil_serves() -> None:
    """In another network namespace the kernel's family is not there."""
    program = (
        "from licagent.metering.fallback.sampler import FallbackMeter\n"
        "m = FallbackMeter(boot_id='x'); m.begin()\n"
        "print(m.source, bool(m.problem), len(m.close_sheet().work) > 0); m.close()\n"
    )
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["psutil", "True", "True"], done.stderr
