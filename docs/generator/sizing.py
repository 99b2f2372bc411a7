# SPDX-License-Identifier: Apache-2.0
"""docs/operations/sizing.md: what hosts and control planes need, from docs/benchmarks.md.

Every figure is a row of the last bench run or a constant of the code. What the run did not have is
no row: it is named below the table, with what would measure it. Words on what grows with what stand
here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from generator.pages import page, table
from licagent.domain.config import AgentConfig
from licagent.store.eventlog import EventLog
from licplane.api.settings import Limits

BENCHMARKS: Final = Path(__file__).resolve().parents[1] / "benchmarks.md"
CASES: Final = ("meter-churn", "usage-outage", "usage-throughput")
"""Cases of the bench that a run may leave out: they take long, or a PostgreSQL."""
MIB: Final = 1 << 20


def sizing() -> str:
    """The page."""
    rows = _rows(BENCHMARKS.read_text(encoding="utf-8"))

    def measured(what: str, case: str = "") -> str:
        """The figure of a row that begins so; where the run had none the name of its case."""
        return next((rows[title] for title in rows if title.startswith(what)), case)

    events = EventLog.__init__.__kwdefaults__ or {}
    return page(
        "Sizing",
        "What a host and a control plane need. Figures are those of [benchmarks](../benchmarks.md),"
        " measured on one machine with two CPUs: keep the proportions, measure your own before you "
        "buy. `./dev bench --only NAME` repeats a case.",
        "## A host",
        *_figures(
            (
                (
                    "memory of the daemon, 1,000 bindings of a control plane",
                    measured(
                        "daemon's resident memory with the link up, "
                        "1,000 bindings from the control plane"
                    ),
                    "bindings and networks that this host sees: scope them",
                ),
                (
                    "the same, 100,000 bindings and 10,000 networks",
                    measured("daemon's resident memory, 100,000 bindings and 10,000 networks"),
                    "",
                ),
                (
                    "memory of the kernel's tables, 100,000 bindings",
                    measured("kernel memory at 100,000 bindings"),
                    "rules, networks, processes: [the formula](../reference/limits.md)",
                ),
                (
                    "memory of the kernel for each open socket",
                    measured("kernel memory of a licensed socket's tag"),
                    "open sockets",
                ),
                (
                    "CPU of the daemon, 1,000 new licensed connections a second",
                    measured("daemon's CPU at 1000 new licensed connections/s"),
                    "programs that use a license for the first time, not connections or bytes",
                ),
                (
                    "the same, each of a new process",
                    measured(
                        "daemon's CPU at 1000 new licensed connections/s, each of a new process"
                    ),
                    "",
                ),
                (
                    "CPU of the daemon, metering 1,000 processes and 500 births a second",
                    measured("daemon's CPU at 1,000 processes", "meter-churn"),
                    "processes that live or die in an interval",
                ),
                (
                    "a connection, over one without licagent",
                    measured("TCP connect + close, licensed"),
                    "nothing: 100,000 bindings cost what 10 do",
                ),
                ("a packet's round trip", measured("TCP round trip, licensed"), "nothing"),
                (
                    "a changed policy, 100,000 bindings",
                    measured(
                        "policy.apply, 100,000 bindings and 10,000 networks, one binding more"
                    ),
                    "bindings that this host sees; the old policy decides meanwhile",
                ),
                (
                    "disk: events",
                    f"{events['segments'] * events['segment_bytes'] // MIB} MiB at most",
                    "nothing: the oldest go",
                ),
                (
                    "disk: usage that is not delivered",
                    f"{AgentConfig().spool_max_bytes // MIB} MiB at most (`spool_max_bytes`)",
                    "programs at work, and how long the link is away",
                ),
                (
                    "disk: usage of a host that makes 200 records a second",
                    measured("spool after ", "usage-outage"),
                    "records a second, hours",
                ),
            ),
        ),
        "Bounds of the unit (`MemoryMax`, `CPUQuota`) are chosen above these and stand with their "
        "reasons in `licagent.service`. A policy of more than 100,000 bindings on one host wants "
        "a higher `MemoryHigh`; first ask whether that host needs to see all of them.",
        "The ledger's size depends on what runs: look at it on one typical host, `licagent status` "
        "after an hour with the link down (`usage spool`), and multiply by the outage that you "
        "want to survive. Reached bounds lose nothing on a host of a control plane: usage is "
        "merged and kept in the kernel, coarser in time.",
        "## A control plane",
        *_figures(
            (
                (
                    "memory of a server process, for each connected host",
                    measured("memory of a server process for one of 5,000 idle hosts"),
                    "hosts; views (distinct labels) come on top",
                ),
                (
                    "one revocation at 2,000 hosts, acknowledged by the last",
                    measured("one revocation to 2,000 simulated hosts, acknowledged by the last"),
                    "hosts in a process",
                ),
                (
                    "2,000 hosts come back at once after a restart",
                    measured(
                        "cold reconnect of 2,000 hosts after the server's restart, the last in sync"
                    ),
                    "hosts in a process; jitter spreads them on purpose",
                ),
                (
                    "hosts that join",
                    measured("2,000 hosts enrol, one connection a process of hosts"),
                    "CPU: a certificate each",
                ),
                (
                    "usage records into PostgreSQL",
                    measured(
                        "usage records through agent, gRPC and PostgreSQL", "usage-throughput"
                    ),
                    "disks and CPU of the database",
                ),
                (
                    "bytes to a host for one changed binding out of 100,000",
                    measured("a push with 1 changed binding out of 100,000: sent to the host"),
                    "what changed, not what there is",
                ),
            ),
        ),
        table(
            ("hosts", "start with", "why"),
            (
                (
                    "up to 1,000",
                    "1 CPU, 1 GiB, SQLite, `serve` as it is",
                    "one process holds them with room to spare",
                ),
                (
                    "up to 5,000",
                    "2 CPUs, 2 GiB, SQLite or PostgreSQL, `--workers 2`",
                    "5,000 streams in one process were measured; a second one halves a storm",
                ),
                (
                    "more, or no machine whose loss matters",
                    "several servers on PostgreSQL, one process for each 5,000 hosts",
                    "[scaling](../scaling.md) has the arithmetic, and what was not tried",
                ),
            ),
        ),
        "A control plane that is away costs nothing at once: hosts go on until their leases end "
        "(`--lease-ttl`). So one server with a [backup](../how-to/back-up-and-restore.md) is a "
        "sound choice for many; lengthen the lease until you can restore well within half of it: a "
        "host that is about to ask again has no more left, and one that is booted has none "
        "([the control plane is away](../how-to/link-down.md)).",
        "Disk: usage is what fills it. Single records are kept for 100 days, sums longer "
        "([retention](../how-to/billing.md#how-long-it-is-kept)). After a week of your own fleet, "
        "the size of the database divided by 7 is a day.",
        "## Network",
        "Three connections outwards for each host to port 8443: for policy and leases, for "
        "reports, and for usage where it is metered; to 8444 only to join, or with a certificate "
        "that has ended. Idle, that is a lease every half of `--lease-ttl` and a report every "
        "`--report-interval`. No port is opened on a host, unless you set `metrics_listen`.",
        f"A server process takes {Limits().connections:,} connections to each listener, those of "
        f"some {Limits().connections // 300 * 100:,} hosts. The figures above were measured with "
        "the first of the three alone: the others take memory on top.",
    )


def _figures(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """The table of what was measured, and a sentence on what was not."""
    found = [row for row in rows if row[1] not in CASES]
    left = [f"{what} (`{case}`)" for what, case, _ in rows if case in CASES]
    made = [table(("what", "measured", "grows with"), found)]
    if left:
        made.append(f"Without a figure, because the last bench run had none: {'; '.join(left)}.")
    return made


def _rows(text: str) -> dict[str, str]:
    """What was measured, by its title without what stands in brackets at its end."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) >= 3:
            found[re.sub(r" \(.*\)$", "", cells[0].lstrip("| "))] = cells[1]
    return found
