# SPDX-License-Identifier: Apache-2.0
"""The agent and other tools beside one another on one load: what each costs, and how far off it is.

They run at the same time, look every 5 s, and are judged by the same reference. Before the last
look the load is frozen, so that nobody is charged with what it could not see yet.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.bench.meter_load import INTERFACE, Link, Load
from tests.bench.meter_peers import (
    INTERVAL_S,
    Atop,
    NetHogs,
    Peer,
    ProcessExporter,
    Psutil,
    cpu_ns,
    version,
)
from tests.bench.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.bench.agent import AgentUnderTest
    from tests.bench.context import Bench

LIVE: Final = 1000
RATE: Final = 500
MANY: Final = "licload"
BRIEF: Final = "brief"
"""Names of the two loads."""

BRIEF_COUNT: Final = 10_000
WIRE: Final = ("tx_wire_bytes", "rx_wire_bytes")

SLACK_S: Final = 1.0
"""Beyond one interval: everybody has looked then."""


@dataclass(slots=True)
class Seen:
    """Of one tool: the share of a core it used, and how far off it was."""

    name: str
    used: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    """By load: counted over used, less 1."""


def beside(bench: Bench) -> list[Row]:
    """1,000 live processes and 500 born a second that send; then 10,000 of 1 ms."""
    link = Link()
    try:
        ours, others, cpu_missing = _cpu(bench, link)
        ours_too, hogs, network_missing = _network(bench, link)
    finally:
        link.close()
    missing = "".join(f"; without {text}" for text in [*cpu_missing, *network_missing])
    load = f"{LIVE:,} processes and {RATE} born a second, which send"
    used = [f"{other.name} {other.used * 100:.2f} %" for other in [*others, *hogs]]
    together = f"; beside nethogs {ours_too.used * 100:.2f} %" if hogs else ""
    return [
        Row(
            f"CPU used by the agent, {load}",
            f"{ours.used * 100:.2f} % of a core",
            ", ".join(used) + together + missing,
            "lowest of atop, process-exporter, nethogs",
            ours.used <= min((o.used for o in others if _is_judged(o)), default=1.0)
            and ours_too.used <= min((o.used for o in hogs), default=1.0),
            key="beside-cpu",
        ),
        _error_row(f"CPU time by the agent against the kernel's own, {load}", MANY, ours, others),
        _error_row(f"bytes by the agent against the interface, {load}", "wire", ours_too, hogs),
        _error_row(
            f"CPU of {BRIEF_COUNT:,} processes of 1 ms by the agent", BRIEF, ours, others, 0.005
        ),
    ]


def _is_judged(other: Seen) -> bool:
    """The bar names atop, process-exporter and nethogs; a loop of psutil stands beside them."""
    return other.name != Psutil.name


def _error_row(
    what: str, load: str, ours: Seen, others: list[Seen], bar: float | None = None
) -> Row:
    """Signed: below zero is what was missed."""
    error = abs(ours.errors[load])
    lowest = error <= min((abs(other.errors[load]) for other in others), default=1.0)
    return Row(
        what,
        f"{ours.errors[load] * 100:+.3f} %",
        ", ".join(f"{other.name} {other.errors[load] * 100:+.1f} %" for other in others),
        "lowest" if bar is None else f"within {bar * 100} %",
        lowest if bar is None else error <= bar,
        key=f"beside-{load}",
    )


def _cpu(bench: Bench, link: Link) -> tuple[Seen, list[Seen], list[str]]:
    """The agent, others that see CPU, and which could not be run."""
    seconds = 10 if bench.quick else 30
    agent, work = bench.metered()
    names = tuple(f"{name}-{kind}" for name in (MANY, BRIEF) for kind in ("job", "live"))
    folder = bench.places.folder / "peers-cpu"
    with contextlib.ExitStack() as undo:
        peers, missing = _start(
            undo,
            lambda: Atop(folder / "atop"),
            lambda: ProcessExporter(folder / "exporter", names),
            lambda: Psutil(folder / "psutil"),
        )
        ours, others, reference = _side_by_side(bench, link, seconds, peers)
        before = usage(agent)
        with Load(work, bench.places.folder, name=BRIEF, burn_us=1000) as load:
            brief = load.births(BRIEF_COUNT // (10 if bench.quick else 1))
            time.sleep(INTERVAL_S + SLACK_S)
        counted = usage(agent)["cpu_ns"] - before["cpu_ns"]
        ours.errors[BRIEF] = counted / brief.cpu_ns - 1
        for peer, other in zip(peers, others, strict=True):
            peer.stop()
            other.errors[MANY] = peer.cpu_of(MANY) * 1e9 / reference - 1
            other.errors[BRIEF] = peer.cpu_of(BRIEF) * 1e9 / brief.cpu_ns - 1
    return ours, others, missing


def _network(bench: Bench, link: Link) -> tuple[Seen, list[Seen], list[str]]:
    """The agent and nethogs, on their own: nethogs may take a CPU for itself."""
    folder = bench.places.folder / "peers-network"
    with contextlib.ExitStack() as undo:
        peers, missing = _start(undo, lambda: NetHogs(folder / "nethogs", link, INTERFACE))
        before = link.wire_bytes()
        ours, others, _ = _side_by_side(bench, link, 5 if bench.quick else 15, peers)
        reference = link.wire_bytes() - before
        for peer, other in zip(peers, others, strict=True):
            peer.stop()
            other.errors["wire"] = peer.wire_of(MANY) / reference - 1
    return ours, others, missing


def _start(undo: contextlib.ExitStack, *makers: Callable[[], Peer]) -> tuple[list[Peer], list[str]]:
    """Start those that can be run, and say which cannot."""
    peers: list[Peer] = []
    missing = []
    for make in makers:
        try:
            peer = make()
        except (RuntimeError, OSError) as error:
            missing.append(str(error))
            continue
        undo.callback(peer.stop)
        peers.append(peer)
    return peers, missing


def _side_by_side(
    bench: Bench, link: Link, seconds: int, peers: list[Peer]
) -> tuple[Seen, list[Seen], int]:
    """What each used beside the load, the agent's errors, and the load's CPU time in ns."""
    agent, work = bench.metered()
    time.sleep(INTERVAL_S + SLACK_S)  # the first look is at all processes since boot
    before, wire = usage(agent), link.wire_bytes()
    with Load(
        work,
        bench.places.folder,
        name=MANY,
        live=LIVE,
        wake_ms=1000,
        live_burn_us=1000,
        burn_us=500,
        executes=True,
        send=1000,
        link=link,
    ) as load:
        for peer in peers:
            peer.begin()
        begun_ns, begun = cpu_ns(agent.pid), time.monotonic()
        load.births(RATE * seconds, RATE)
        elapsed_s = time.monotonic() - begun
        ours = Seen("agent", (cpu_ns(agent.pid) - begun_ns) / 1e9 / elapsed_s)
        others = [Seen(_name(peer), peer.end() / 1e9 / elapsed_s) for peer in peers]
        with frozen(work):
            time.sleep(INTERVAL_S + SLACK_S)
            total = load.finish()
        time.sleep(1)
    counted = {key: amount - before.get(key, 0) for key, amount in usage(agent).items()}
    ours.errors[MANY] = counted["cpu_ns"] / total.cpu_ns - 1
    ours.errors["wire"] = sum(counted[key] for key in WIRE) / (link.wire_bytes() - wire) - 1
    return ours, others, total.cpu_ns


def _name(peer: Peer) -> str:
    package = f"prometheus-{peer.name}" if isinstance(peer, ProcessExporter) else peer.name
    return f"{peer.name} {version(package)}".strip()


def usage(agent: AgentUnderTest) -> dict[str, int]:
    """All that the processes below the agent's root used so far: `licagent usage`, its total."""
    found = agent.call("usage", by="executable")
    total = defaultdict(int, found["total"])
    for key, amount in found["unattributed"]["quantities"].items():
        total[key] -= amount
    for key in ("cpu_ns", *WIRE):
        total[key] += 0
    return dict(total)


@contextlib.contextmanager
def frozen(cgroup: Path) -> Iterator[None]:
    """Its processes do not run; they can still be killed."""
    switch = cgroup / "cgroup.freeze"
    switch.write_text("1", encoding="ascii")
    try:
        yield
    finally:
        switch.write_text("0", encoding="ascii")
