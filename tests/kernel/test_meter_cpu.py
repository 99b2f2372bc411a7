# SPDX-License-Identifier: Apache-2.0
"""CPU time against what the kernel tells others: wait4, perf, the cgroup's and the host's own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.accuracy import Accuracy, needed
from tests.kernel.harness.meter import MeterUnderTest, once
from tests.kernel.harness.work import MS, Worker, cpu_of, has

pytest_plugins = ["tests.kernel.harness.metered"]
pytestmark = [once, pytest.mark.measured_again]

EXACT: Final = 0.001
"""Where the reference is the same clock, read at nearly the same moment."""

OF_THREADS: Final = 0.05
"""wait4 knows of a thread what it had used when the kernel let it go: its last microseconds on
the CPU, switching to the next, are in the scheduler's figures only."""

EXIT_NS: Final = MS // 5
"""perf takes its counters away while a process exits: what the rest of that costs at most."""

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_ten_thousand_processes_of_a_millisecond(
    metered: MeterUnderTest, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    """The most of them begin and end between two readings."""
    with metered.measuring() as use:
        ran = worker.work(place, "storm", 10_000, MS, 4)

    found = use.work(place)
    what = "10,000 processes of 1 ms"
    accuracy.check(f"{what}: CPU", "wait4 rusage", found.cpu_ns, ran.cpu_ns, "ns", 0.005)
    accuracy.check(f"{what}: CPU", "cgroup cpu.stat", found.cpu_ns, cpu_of(place), "ns", 0.005)
    accuracy.check(f"{what}: ended", "forks and the parent", found.processes, 10_001, "processes")


def test_one_process_read_many_times(
    metered: MeterUnderTest, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    """Deltas of a live process add up; the last one comes from its exit."""
    sheets = 0
    with metered.measuring() as use, worker.started(place, *worker.argv("burn", 1500 * MS)) as runs:
        while runs.process.poll() is None:
            use.add(metered.cut())
            sheets += 1
            time.sleep(0.05)
        ran = runs.finish()

    found = use.work(place)
    assert found.processes == 1
    rows = [row for row in use.work_of(place) if row.who.pid]
    needed(sheets > 1 and len(rows) > 1, "it had no row of its own")
    accuracy.check(
        "one process in many sheets: CPU", "wait4 rusage", found.cpu_ns, ran.cpu_ns, "ns", EXACT
    )


def test_threads_that_come_and_go(
    metered: MeterUnderTest, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    """2,000 threads of a process that is read while they run."""
    with (
        metered.measuring() as use,
        worker.started(place, *worker.argv("threads", 2000, MS // 4, 16)) as runs,
    ):
        while runs.process.poll() is None:
            metered.meter.collect()
            time.sleep(0.02)
        ran = runs.finish()

    found = use.work(place)
    assert (ran.status, found.processes) == (0, 1), "threads are no processes"
    what = "2,000 threads of 0.25 ms: CPU"
    accuracy.check(what, "cgroup cpu.stat", found.cpu_ns, cpu_of(place), "ns", 0.01)
    accuracy.check(what, "wait4 rusage", found.cpu_ns, ran.cpu_ns, "ns", OF_THREADS)


STORMS: Final = {
    "threads": ("--pthread", "2", "--pthread-ops", "6000", "--pthread-max", "64"),
    "forks": ("--fork", "2", "--fork-ops", "3000"),
    "forks by vfork": ("--vfork", "2", "--vfork-ops", "3000"),
    "clones": ("--clone", "1", "--clone-ops", "150"),
}
STORMS_OFF: Final = {"threads": 0.01, "forks": 0.01, "forks by vfork": 0.02, "clones": 0.01}
"""The shorter a process, the more of it is in a release that a loaded machine may miss."""


def test_programs_that_end_at_once(
    metered: MeterUnderTest, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    """Nearly all of what /bin/true uses is starting and ending.

    What is shorter than a millisecond is counted when the kernel frees it, and a kernel under load
    may free a few unseen by any program (found on a virtual machine): the tolerance is for those.
    """
    with metered.measuring() as use:
        ran = worker.work(place, "spawn", 500, "/bin/true")

    found = use.work(place)
    what = "500 executions of /bin/true"
    accuracy.check(f"{what}: CPU", "cgroup cpu.stat", found.cpu_ns, cpu_of(place), "ns", 0.02)
    accuracy.check(f"{what}: CPU", "wait4 rusage", found.cpu_ns, ran.cpu_ns, "ns", 0.02)
    accuracy.check(f"{what}: ended", "spawns and the parent", found.processes, 501, "processes")


@pytest.mark.parametrize("storm", STORMS)
def test_storms(
    storm: str, metered: MeterUnderTest, worker: Worker, place: Path, accuracy: Accuracy
) -> None:
    assert has("stress-ng"), "stress-ng is not installed: ./dev setup"
    with metered.measuring() as use:
        ran = worker.run(
            place, "stress-ng", "--temp-path", "/tmp", "--timeout", "10", *STORMS[storm]
        )

    assert ran.status == 0, ran
    found = use.work(place)
    what = f"stress-ng storm of {storm}: CPU"
    accuracy.check(what, "cgroup cpu.stat", found.cpu_ns, cpu_of(place), "ns", STORMS_OFF[storm])
    # It does not wait for all of its children: what wait4 says is then less.


def test_perf_task_clock(
    metered: MeterUnderTest, worker: Worker, place: Path, accuracy: Accuracy, tmp_path: Path
) -> None:
    """perf(1) counts on its own clock, through forks and threads, what runs under it."""
    assert has("perf"), "perf is not installed: ./dev setup"
    counted = tmp_path / "counted"
    perf = ["perf", "stat", "-x,", "-e", "task-clock", "-o", str(counted), "--"]
    with metered.measuring() as use:
        # Its counters begin at the exec: the shell's start stays without.
        enter = 'echo 0 > "$0/cgroup.procs"; exec "$@"'
        command = worker.argv("storm", 60, 10 * MS, 2)
        done = subprocess.run(
            [*perf, "/bin/sh", "-c", enter, str(place), *command],
            check=False,
            capture_output=True,
            text=True,
        )
    if "not supported" in counted.read_text() or done.returncode:
        pytest.skip(f"the kernel lacks perf's task-clock: {done.stderr}")
    line = next(line for line in counted.read_text().splitlines() if "task-clock" in line)
    milliseconds = float(line.split(",", 1)[0])
    accuracy.check(
        "60 processes of 10 ms: CPU",
        "perf stat -e task-clock",
        use.work(place).cpu_ns,
        milliseconds * 1e6,
        "ns",
        0.01,
        slack=61 * EXIT_NS,
    )


def busy_ticks() -> int:
    """What /proc/stat has for the host: user, nice, system, irq and softirq; no guest, no steal."""
    user, nice, system, _idle, _wait, irq, softirq = (
        int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return user + nice + system + irq + softirq


@contextmanager
def nobody_idle(worker: Worker, place: Path) -> Iterator[None]:
    """A tick finds somebody on every CPU, so that ticks are right in sum."""
    burners = [
        subprocess.Popen(["nice", "-n", "19", *worker.argv("burn", 3600 * 1000 * MS)])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        for each in burners:
            (place / "cgroup.procs").write_text(str(each.pid))
        yield
    finally:
        for each in burners:
            each.kill()
            each.wait()


def test_all_processes_together_are_the_host(
    host_meter: MeterUnderTest, worker: Worker, accuracy: Accuracy
) -> None:
    """Kernel threads included, whatever else runs; interrupts land on whom they interrupt."""
    place = host_meter.tree.root
    with nobody_idle(worker, place):
        outer = busy_ticks()
        host_meter.cut()
        inner = busy_ticks()
        worker.work(place, "storm", 1000, MS, 4)
        time.sleep(1)
        inner = busy_ticks() - inner
        sheet = host_meter.cut()
        outer = busy_ticks() - outer
    found = sum(row.cpu_ns for row in sheet.work)
    found += sheet.spilled_work.cpu_ns if sheet.spilled_work else 0
    accuracy.check(
        "all processes of the host: CPU",
        "/proc/stat, no CPU idle",
        found,
        (inner + outer) / 2 * 1e9 / TICKS_PER_S,
        "ns",
        0.01,
        slack=(outer - inner) / 2 * 1e9 / TICKS_PER_S,
    )
