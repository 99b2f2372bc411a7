# SPDX-License-Identifier: Apache-2.0
"""What metering costs the daemon: a sample of many processes, and processes that come and go."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
from tests.bench import meter_psutil
from tests.bench.meter_load import Load
from tests.bench.meter_peers import INTERVAL_S, cpu_ns
from tests.bench.table import Row

if TYPE_CHECKING:
    from tests.bench.agent import AgentUnderTest
    from tests.bench.context import Bench

LIVE: Final = 1000
RATE: Final = 500
"""Births, and deaths, a second."""

SAMPLE_BAR_MS: Final = 60
FLAT_KIB: Final = 2048
"""Growth of the resident memory over the second half of the churn that counts as none."""


def sample(bench: Bench) -> list[Row]:
    """What one sample of 10,000 live processes costs the daemon: some of them ran, all ran."""
    count = 2000 if bench.quick else 10_000
    agent, work = bench.metered()
    intervals = 2 if bench.quick else 3
    bar_ms = SAMPLE_BAR_MS * count / 10_000
    idle_ms, _ = _interval_ms(agent, intervals)
    rows: list[Row] = []
    for words, wakes in (("of whom a tenth ran", 10), ("who all ran", 1)):
        wake_ms = 1000 * INTERVAL_S * wakes
        with Load(work, bench.places.folder, live=count, wake_ms=wake_ms, live_burn_us=200):
            time.sleep(2.5 * INTERVAL_S)  # names are looked up once
            whole_ms, steps_ms = _interval_ms(agent, intervals)
            spread, psutil_ms = _psutil_ms(work)
        step_ms = statistics.median(steps_ms)
        rows += [
            Row(
                f"one sample of {count:,} live processes {words}, CPU time of the daemon",
                f"{step_ms:.0f} ms",
                "counted, read, named, signed and on disk; samples "
                + ", ".join(f"{each:.0f}" for each in steps_ms)
                + f"; all else that the daemon does meanwhile {whole_ms - step_ms:.0f} ms, with no"
                f" process to meter {idle_ms:.0f} ms",
                f"<= {bar_ms:.0f} ms",
                step_ms <= bar_ms,
                key="sample",
            ),
            Row(
                f"psutil for the same fields of them over that: {words}",
                f"{psutil_ms / step_ms:.1f} x" if step_ms else "no cost",
                spread,
                ">= 10 x",
                psutil_ms >= 10 * step_ms,
                key="sample",
            ),
        ]
    return rows


def _interval_ms(agent: AgentUnderTest, intervals: int) -> tuple[float, list[float]]:
    """CPU time of the whole daemon for one interval, the mean; and of each sample's thread."""
    steps_ms = []
    before_ns = cpu_ns(agent.pid)
    for _ in range(intervals):
        time.sleep(INTERVAL_S)
        steps_ms.append(agent.status()["metering"]["step_s"] * 1000)
    return (cpu_ns(agent.pid) - before_ns) / intervals / 1e6, steps_ms


def _psutil_ms(cgroup: Path) -> tuple[str, float]:
    """Words, and the least CPU time of three looks at the processes of a cgroup."""
    pids = (cgroup / "cgroup.procs").read_text(encoding="ascii").split()
    processes = [psutil.Process(int(pid)) for pid in pids]
    costs_ms, seen = [], 0
    for _ in range(3):
        begun_ns = time.process_time_ns()
        seen = meter_psutil.sample(processes)
        costs_ms.append((time.process_time_ns() - begun_ns) / 1e6)
    words = f"psutil {psutil.__version__}: {statistics.median(costs_ms):.0f} ms for {seen:,}"
    return words + ", read only: nothing named, nothing kept", min(costs_ms)


def churn(bench: Bench) -> list[Row]:
    """1,000 processes that live, 500 born and gone a second: the daemon's CPU and memory."""
    agent, work = bench.metered()
    minutes = 0.5 if bench.quick else bench.churn_minutes
    chunks = max(4, round(minutes * 60 / INTERVAL_S))
    resident_kib: list[int] = []
    born = 0
    with Load(
        work,
        bench.places.folder,
        live=LIVE,
        wake_ms=1000,
        live_burn_us=500,
        burn_us=300,
        executes=True,
    ) as load:
        load.births(RATE * INTERVAL_S, RATE)
        before_ns, begun = cpu_ns(agent.pid), time.monotonic()
        for _ in range(chunks):
            born = load.births(RATE * INTERVAL_S, RATE).born
            resident_kib.append(_resident_kib(agent.pid))
        elapsed_s = time.monotonic() - begun
        share = (cpu_ns(agent.pid) - before_ns) / 1e9 / elapsed_s
        rate = (born - RATE * INTERVAL_S) / elapsed_s
    half = resident_kib[len(resident_kib) // 2 :]
    third = max(1, len(half) // 3)
    grown_kib = statistics.median(half[-third:]) - statistics.median(half[:third])
    return [
        Row(
            f"daemon's CPU at {LIVE:,} processes, {rate:.0f} births and deaths/s, every 5 s",
            f"{share * 100:.2f} % of a core",
            f"over {elapsed_s:.0f} s",
            "<= 2 %",
            share <= 0.02,
            key="churn-cpu",
        ),
        Row(
            f"daemon's resident memory over {elapsed_s / 60:.1f} minutes of that",
            f"{resident_kib[-1] / 1024:.1f} MiB",
            f"begun at {resident_kib[0] / 1024:.1f} MiB, at half time {half[0] / 1024:.1f} MiB,"
            f" most {max(resident_kib) / 1024:.1f} MiB; in the second half"
            f" {grown_kib / 1024:+.1f} MiB (`--churn-minutes 60` for the hour)",
            "flat: within 2 MiB",
            grown_kib <= FLAT_KIB,
            key="churn-memory",
        ),
    ]


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no VmRSS")
