# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs and how fast it acts: revocation, start, memory, CPU."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import kernel_memory, paired
from tests.bench.table import Row
from tests.bench.workload import LIVE_RESOURCES, live_address, live_license

if TYPE_CHECKING:
    from tests.bench.agent import AgentUnderTest
    from tests.bench.context import Bench

LIVE_SOCKETS = 1000
PACE_US = 5000


def revocation(bench: Bench) -> list[Row]:
    """From the request to revoke until the last byte of each of 1,000 live sockets."""
    agent, _ = bench.small()
    rows = []
    trials = 1 if bench.quick else LIVE_RESOURCES // 2
    for offset, direction, words in ((0, "up", "sending"), (trials, "down", "receiving")):
        p99s, errors_ms, done_ms = [], [], []
        for trial in range(offset, offset + trials):
            last_ms, failed_ms, answered_ms = _revoke(bench, agent, trial, direction)
            p99s.append(_percentile(last_ms, 0.99))
            errors_ms += failed_ms
            done_ms.append(answered_ms)
        worst = max(p99s)
        ended = f"{len(errors_ms) / trials:.0f} of {LIVE_SOCKETS} senders saw an error"
        if errors_ms:
            ended += f", p99 {_percentile(errors_ms, 0.99):.1f} ms"
        rows.append(
            Row(
                f"revocation to the last byte, {LIVE_SOCKETS} sockets {words}, p99 (worst trial)",
                f"{worst:.1f} ms",
                f"trials {', '.join(f'{p:.1f}' for p in p99s)}; revoke answered after"
                f" {max(done_ms):.1f} ms; {ended}",
                "<= 20 ms",
                worst <= 20,
            )
        )
    return rows


def _revoke(
    bench: Bench, agent: AgentUnderTest, trial: int, direction: str
) -> tuple[list[float], list[float], float]:
    """Last bytes, senders' errors and the daemon's answer, in ms after the request."""
    variant = bench.variant("small", live_address(trial))
    options = ("--sockets", str(LIVE_SOCKETS), "--pace-us", str(PACE_US), "--direction", direction)
    with paired.spawn("live", variant, *options) as live:
        assert live.stdin is not None
        assert live.stdout is not None
        if live.stdout.readline() != "READY\n":
            raise RuntimeError(f"the probe's live sockets failed:\n{agent.log}")
        start_ns = time.monotonic_ns()
        agent.revoke(live_license(trial))
        answered_ms = (time.monotonic_ns() - start_ns) / 1e6
        time.sleep(1.5)
        stop_ns = time.monotonic_ns()
        live.stdin.close()
        found: dict[str, Any] = json.loads(live.stdout.read())
    last_ms = [(at - start_ns) / 1e6 for at in found["last_ns"]]
    if max(found["last_ns"]) > stop_ns - 100_000_000:
        raise RuntimeError(f"sockets of a revoked license still carry data:\n{agent.log}")
    if min(last_ms) < -PACE_US / 1000 * 20:
        raise RuntimeError("some sockets were silent before the revocation: lower the load")
    failed_ms = [(at - start_ns) / 1e6 for at in found["error_ns"] if at]
    return last_ms, failed_ms, answered_ms


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def start(bench: Bench) -> list[Row]:
    """From the loader's start to all programs attached, for each loader."""
    rows = []
    for loader, bar_s in (("prebuilt", 0.5), ("bcc", 3.0)):
        spawned, reported = [], []
        for attempt in range(2 if bench.quick else 6):
            name = f"start-{loader}-{attempt}"
            agent, _ = bench.new_agent(name, bindings=10, networks=10, loader=loader)
            try:
                agent.start()
                spawned.append((_last_pin_ns(agent.bpffs_dir) - agent.started_ns) / 1e9)
                kernel = agent.status().get("kernel") or {}
                if kernel.get("load_ns"):
                    reported.append(kernel["load_ns"] / 1e9)
            finally:
                agent.stop()
                bench.places.drop_bpffs(agent.bpffs_dir)
        whole_s = statistics.median(spawned)
        loading_s = statistics.median(reported) if reported else whole_s
        words = f"start of the loader to all programs attached, {loader}"
        spread = f"from the spawn of the daemon, Python's start included: {whole_s:.2f} s"
        rows.append(
            Row(words, f"{loading_s:.2f} s", spread, f"<= {bar_s:.1f} s", loading_s <= bar_s)
        )
    return rows


def _last_pin_ns(bpffs: Path) -> int:
    """When the newest pin was made (the links come last)."""
    pins = [path for path in bpffs.rglob("*") if path.is_file() and not path.is_dir()]
    if not pins:
        raise RuntimeError(f"the agent pinned nothing under {bpffs}")
    return max(path.stat().st_ctime_ns for path in pins)


def _cpu_ns(pid: int) -> int:
    """CPU time of a process with all its threads, also ended ones, in ns (clock_getcpuclockid)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def _memory_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no {field}")


def daemon(bench: Bench) -> list[Row]:
    """The daemon's CPU at 1,000 connections a second, then its memory when it is quiet again."""
    agent, _ = bench.thousand()
    seconds = 5 if bench.quick else 30
    time.sleep(2)
    idle_ns, idle_at = _cpu_ns(agent.pid), time.monotonic()
    time.sleep(seconds)
    idle = (_cpu_ns(agent.pid) - idle_ns) / 1e9 / (time.monotonic() - idle_at)
    cpu_ns = _cpu_ns(agent.pid)
    options = ("--rate", "1000", "--seconds", str(seconds))
    with paired.spawn("rate", bench.variant("thousand"), *options) as probe:
        assert probe.stdout is not None
        found: dict[str, Any] = json.loads(probe.stdout.read())
    share = (_cpu_ns(agent.pid) - cpu_ns) / 1e9 / found["seconds"]
    rate = found["connections"] / found["seconds"]
    if found["failed"] or rate < 950:
        raise RuntimeError(f"{rate:.0f} connections a second, {found['failed']} failed")
    time.sleep(3 if bench.quick else 15)
    rss_kib, peak_kib = (_memory_kib(agent.pid, field) for field in ("VmRSS", "VmHWM"))
    return [
        Row(
            "daemon's resident memory, 1,000 bindings, after 1,000 connections/s",
            f"{rss_kib / 1024:.1f} MiB",
            f"peak since its start {peak_kib / 1024:.1f} MiB",
            "<= 64 MiB",
            rss_kib <= 64 * 1024,
        ),
        Row(
            f"daemon's CPU at {rate:.0f} new licensed connections/s",
            f"{share * 100:.2f} % of a core",
            f"over {found['seconds']:.0f} s; idle {idle * 100:.2f} %",
            "<= 5 %",
            share <= 0.05,
        ),
    ]


def memory(bench: Bench) -> list[Row]:
    """What the maps of the large policy take in the kernel, and their bound."""
    agent, _ = bench.large()
    small, _ = bench.small()
    return kernel_memory.rows(agent, small, bench.bindings)
