# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs and how fast it acts: revocation, start, memory, CPU."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import kernel_memory, paired, socket_memory
from tests.bench.table import Row
from tests.bench.workload import LIVE_RESOURCES, binding, live_address, live_license

if TYPE_CHECKING:
    from tests.bench.agent import AgentUnderTest
    from tests.bench.context import Bench

LIVE_SOCKETS = 1000
PACE_US = 5000


def revocation(bench: Bench) -> list[Row]:
    """From the request to revoke until the last byte of each of 1,000 live sockets."""
    agent, _ = bench.large()
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
                key="revocation",
            )
        )
    return rows


def _revoke(
    bench: Bench, agent: AgentUnderTest, trial: int, direction: str
) -> tuple[list[float], list[float], float]:
    """Last bytes, senders' errors and the daemon's answer, in ms after the request."""
    variant = bench.variant("large", live_address(trial))
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
            Row(
                words,
                f"{loading_s:.2f} s",
                spread,
                f"<= {bar_s:.1f} s",
                loading_s <= bar_s,
                key=f"start-{loader}",
            )
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
    seconds = 5 if bench.quick else 20
    time.sleep(2)
    idle_ns, idle_at = _cpu_ns(agent.pid), time.monotonic()
    time.sleep(seconds)
    idle = (_cpu_ns(agent.pid) - idle_ns) / 1e9 / (time.monotonic() - idle_at)
    words = "daemon's CPU at {:.0f} new licensed connections/s"
    rows = []
    for one, options in (("", ()), (", each of a new process", ("--fork",))):
        share, rate = _cpu_share(bench, agent, seconds, *options)
        rows.append(
            Row(
                words.format(rate) + one,
                f"{share * 100:.2f} % of a core",
                f"over {seconds} s; idle {idle * 100:.2f} %",
                "<= 5 %",
                share <= 0.05,
                key="daemon-cpu",
            )
        )
    time.sleep(3 if bench.quick else 15)
    rss_kib, peak_kib = (_memory_kib(agent.pid, field) for field in ("VmRSS", "VmHWM"))
    rows.append(
        Row(
            "daemon's resident memory, 1,000 bindings, after 1,000 connections/s",
            f"{rss_kib / 1024:.1f} MiB",
            f"peak since its start {peak_kib / 1024:.1f} MiB",
            "<= 64 MiB",
            rss_kib <= 64 * 1024,
            key="daemon-memory",
        )
    )
    return rows


def _cpu_share(
    bench: Bench, agent: AgentUnderTest, seconds: int, *options: str
) -> tuple[float, float]:
    """CPU seconds of the daemon a second, and the connections a second that there were.

    What the daemon does in the second after the last connection counts as well.
    """
    before_ns = _cpu_ns(agent.pid)
    rated = ("--rate", "1000", "--seconds", str(seconds), *options)
    with paired.spawn("rate", bench.variant("thousand"), *rated) as probe:
        assert probe.stdout is not None
        found: dict[str, Any] = json.loads(probe.stdout.read())
    time.sleep(1)
    share = (_cpu_ns(agent.pid) - before_ns) / 1e9 / found["seconds"]
    rate = found["connections"] / found["seconds"]
    if found["failed"] or rate < 950:
        raise RuntimeError(f"{rate:.0f} connections a second, {found['failed']} failed")
    return share, rate


def policy(bench: Bench) -> list[Row]:
    """A policy with one binding more put in force beside 100,000, and the daemon's memory then."""
    agent, _ = bench.large()
    spent_s = []
    for attempt in range(1 if bench.quick else 3):
        text = binding("bench", f"unix:uid:{200_000 + attempt}")
        started = time.monotonic()
        agent.call("policy.apply", files=[{"name": "90-more.toml", "text": text}])
        spent_s.append(time.monotonic() - started)
    rss_kib, peak_kib = (_memory_kib(agent.pid, field) for field in ("VmRSS", "VmHWM"))
    sizes = f"{bench.bindings:,} bindings and {bench.networks:,} networks"
    return [
        Row(
            f"policy.apply, {sizes}, one binding more",
            f"{statistics.median(spent_s):.1f} s",
            "until the new policy is in force; the old one decides meanwhile",
        ),
        Row(
            f"daemon's resident memory, {sizes}",
            f"{rss_kib / 1024:.0f} MiB",
            f"peak since its start {peak_kib / 1024:.0f} MiB",
        ),
    ]


def memory(bench: Bench) -> list[Row]:
    """What the maps of the large policy take in the kernel, and their bound."""
    agent, _ = bench.large()
    small, _ = bench.small()
    return [
        *kernel_memory.rows(agent, small, bench.bindings),
        socket_memory.row(bench.variant("bare"), bench.variant("small")),
    ]
