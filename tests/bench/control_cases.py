# SPDX-License-Identifier: Apache-2.0
"""What the control plane costs and how fast it acts, with simulated hosts over real TLS."""

from __future__ import annotations

import contextlib
import math
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.control_fleet import Fleet
from tests.bench.table import Row
from tests.system.harness.adminapi import AdminClient
from tests.system.harness.controlplane import ControlPlane, Document, license

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.context import Bench

PROCESSES: Final = 4
"""Of simulated hosts. They share the machine's CPUs with the server, so figures are of both."""


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so many are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@contextmanager
def plane(*options: str) -> Iterator[ControlPlane]:
    """A control plane with keys, that serves."""
    with ControlPlane(*options) as found:
        found.make_keys()
        found.start()
        yield found


def admin(found: ControlPlane) -> AdminClient:
    """A connection as administrator."""
    identity = found.folder / "admin.pem"
    found.do("admin", "create", "bench", "--role", "admin", "--out", identity)
    return AdminClient(found.control, identity)


def filler(count: int) -> list[Document]:
    """A resource and so many licenses for it."""
    where = {"cidr": "192.0.2.0/24", "ports": ["443"], "protocol": "tcp"}
    table = {"name": "web", "kind": "network", "mode": "enforce", "destinations": [where]}
    return [
        Document("resource", table),
        *(license(f"license-{number:03}", "web") for number in range(count)),
    ]


def fanout(bench: Bench) -> list[Row]:
    """One revocation to 2,000 hosts, until each has acknowledged it."""
    size, rounds = (200, 2) if bench.quick else (2000, 5)
    with plane() as found, Fleet(PROCESSES, found.folder / "fleet.log") as fleet:
        found.apply(*filler(rounds + 1))
        enroll_s = fleet.enroll(found.join(uses=size), size)
        started = time.monotonic()
        fleet.start()
        fleet.wait_synced()
        sync_s = time.monotonic() - started
        rows = []
        worst: list[float] = []
        with admin(found) as api:
            api.set_license_state(f"license-{rounds:03}")  # the first of all pays for start-up
            time.sleep(3)
            for number in range(rounds):
                begun_ns = time.monotonic_ns()
                api.set_license_state(f"license-{number:03}")
                time.sleep(2)  # asking for the times would disturb them
                at_s = [(at - begun_ns) / 1e9 for at in fleet.wait_revoked(begun_ns)]
                if not worst or max(at_s) > max(worst):
                    worst = at_s
                time.sleep(1)
    p50, p99, last = percentile(worst, 0.5), percentile(worst, 0.99), max(worst)
    rows.append(
        Row(
            f"one revocation to {size:,} simulated hosts, acknowledged by the last",
            f"{last:.2f} s",
            f"worst of {rounds}: p50 {p50:.2f} s, p99 {p99:.2f} s; from the request of it",
            "<= 2 s",
            last <= 2,
            key="fanout",
        )
    )
    rows.append(
        Row(
            f"{size:,} hosts enrol, one connection a process of hosts",
            f"{size / enroll_s:.0f} hosts/s",
            f"then all connect and are in sync within {sync_s:.1f} s",
        )
    )
    return rows


def idle(bench: Bench) -> list[Row]:
    """Memory of a server process for each host that is connected and has nothing to do."""
    size = 500 if bench.quick else 3000
    with plane() as found, Fleet(PROCESSES, found.folder / "fleet.log") as fleet:
        found.apply(*filler(1))
        fleet.enroll(found.join(uses=size), size)
        # Started afresh: what enrolling took is not of the streams.
        found.stop()
        found.start()
        server = serving(found.pid)
        time.sleep(2)
        before_kib = rss_kib(server)
        fleet.start()
        fleet.wait_synced()
        time.sleep(5 if bench.quick else 15)
        after_kib = rss_kib(server)
        synced = fleet.state()["synced"]
    each_kib = (after_kib - before_kib) / size
    return [
        Row(
            f"memory of a server process for one of {synced:,} idle hosts",
            f"{each_kib:.0f} KiB",
            f"{before_kib / 1024:.0f} MiB without, {after_kib / 1024:.0f} MiB with them",
            "<= 120 KiB",
            each_kib <= 120 and synced == size,
            key="idle",
        )
    ]


def serving(pid: int) -> int:
    """The process that holds the streams: the only worker, or the server itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    processes = [pid, *map(int, children)]
    return max(processes, key=rss_kib)


def rss_kib(pid: int) -> int:
    """Resident memory, shared pages included; 0 for one that ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


def reconnect(bench: Bench) -> list[Row]:
    """The server dies and comes back: until the last of 2,000 hosts has the whole view again."""
    size = 200 if bench.quick else 2000
    with plane() as found, Fleet(PROCESSES, found.folder / "fleet.log") as fleet:
        found.apply(*filler(50))
        fleet.enroll(found.join(uses=size), size)
        fleet.start()
        fleet.wait_synced()
        found.kill()
        fleet.all("forget")
        time.sleep(2)
        begun_ns = time.monotonic_ns()
        found.start()
        up_s = (time.monotonic_ns() - begun_ns) / 1e9
        state = fleet.wait_synced()
        at_s = [(at - begun_ns) / 1e9 for at in state["synced_ns"]]
        refused = sum(state["refusals"].values())
    last = max(at_s)
    return [
        Row(
            f"cold reconnect of {size:,} hosts after the server's restart, the last in sync",
            f"{last:.1f} s",
            f"p50 {percentile(at_s, 0.5):.1f} s, p99 {percentile(at_s, 0.99):.1f} s; the server"
            f" listens after {up_s:.1f} s; {refused} attempts failed or were told to come later",
            "<= 60 s",
            last <= 60 and state["synced"] == size,
            key="reconnect",
        )
    ]
