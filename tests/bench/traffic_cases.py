# SPDX-License-Identifier: Apache-2.0
"""Costs of traffic: bare, under the agent, and under nftables that does the same job by uid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.bench import paired
from tests.bench.places import NO_RESOURCE
from tests.bench.table import Row, ratio_row

if TYPE_CHECKING:
    from tests.bench.context import Bench
    from tests.bench.paired import Paired, Variant

OPERATIONS: Final = {
    "tcp-connect": ("TCP connect + close", 600),
    "tcp-rtt": ("TCP round trip", 400),
    "udp-sendto": ("UDP send, unconnected socket", 400),
    "udp-send": ("UDP send, connected socket", 400),
    "udp-connect": ("connect(2) on a UDP socket", 400),
}
"""Probe command -> words, rounds of a full run."""


def _costs(measured: Paired) -> str:
    return ", ".join(f"{name} {measured.cost_ns(name):.0f} ns" for name in measured.rounds_ns)


def _measure(bench: Bench, command: str, variants: list[Variant], *options: str) -> Paired:
    rounds = bench.rounds(OPERATIONS[command][1])
    limit_s = "8" if bench.quick else "25"  # on a busy machine spinning ends wait for a CPU
    return paired.run(command, variants, "--rounds", rounds, "--limit", limit_s, *options)


def noise(bench: Bench) -> list[Row]:
    """Bare against bare: what the probe calls a difference where there is none."""
    rows = []
    for command, (words, _) in OPERATIONS.items():
        measured = _measure(bench, command, [bench.variant("bare"), bench.variant("again")])
        row = ratio_row(f"{words}: bare over bare", measured.ratio("again", "bare"), None)
        within = abs(measured.ratio("again", "bare").median - 1) <= 0.01
        rows.append(Row(row.what, row.measured, row.spread, "within 1 %", within))
    return rows


def nftables(bench: Bench) -> list[Row]:
    """nftables over bare, for machines without the agent."""
    rows = []
    for command, (words, _) in OPERATIONS.items():
        measured = _measure(bench, command, [bench.variant("bare"), bench.variant("nft")])
        rows.append(ratio_row(f"{words}: nftables over bare", measured.ratio("nft", "bare"), None))
    return rows


def _floors(words: str, measured: Paired, agent: str) -> tuple[dict[str, str], list[Row]]:
    """Facts and rows: how much of the agent's ratio is the kernel's price for having hooks."""
    ratios = {
        "floor": (measured.ratio("floor", "bare"), "empty programs over bare"),
        "tag": (measured.ratio("tag", "bare"), "empty programs and a tag over bare"),
        "own": (measured.ratio(agent, "tag"), "agent over empty programs and a tag"),
    }
    facts = {name: f"{ratio.median:.3f} x" for name, (ratio, _) in ratios.items()}
    return facts, [ratio_row(f"{words}: {what}", ratio, None) for ratio, what in ratios.values()]


def licensed(bench: Bench, command: str, bar: float | None, *, nft_bar: bool = True) -> list[Row]:
    """One operation: the agent over bare, and over nftables; then where its cost comes from."""
    words = f"{OPERATIONS[command][0]}, licensed"
    variants = [bench.variant(name) for name in ("bare", "large", "nft", "floor", "tag")]
    measured = _measure(bench, command, variants)
    facts, floors = _floors(words, measured, "large")
    rows = [
        ratio_row(
            f"{words} ({_costs(measured)})",
            measured.ratio("large", "bare"),
            bar,
            key=command,
            facts=facts,
        ),
        ratio_row(
            f"{words}: agent over nftables",
            measured.ratio("large", "nft"),
            1.0 if nft_bar else None,
            key=f"{command}/nftables",
            facts={**facts, "nft": f"{measured.ratio('nft', 'bare').median:.3f} x"},
        ),
        ratio_row(f"{words}: nftables over bare", measured.ratio("nft", "bare"), None),
        *floors,
    ]
    if command in {"tcp-connect", "tcp-rtt"}:
        remote = _measure(bench, command, variants[:3], "--remote")
        words += ", server on another CPU"
        rows.append(ratio_row(words, remote.ratio("large", "bare"), None))
        rows.append(ratio_row(f"{words}: agent over nftables", remote.ratio("large", "nft"), None))
    return rows


def connect(bench: Bench) -> list[Row]:
    """TCP connect + close."""
    return licensed(bench, "tcp-connect", 1.10)


def round_trip(bench: Bench) -> list[Row]:
    """TCP round trip of a byte."""
    return licensed(bench, "tcp-rtt", 1.04)


def udp(bench: Bench) -> list[Row]:
    """UDP sends, and connect(2) on a UDP socket, which has no bar."""
    return [
        *licensed(bench, "udp-sendto", 1.04),
        *licensed(bench, "udp-send", 1.04),
        *licensed(bench, "udp-connect", None, nft_bar=False),
    ]


def unlicensed(bench: Bench) -> list[Row]:
    """Traffic to no resource while the agent enforces."""
    rows = []
    variants = [bench.variant(name, NO_RESOURCE) for name in ("bare", "large", "floor", "tag")]
    bars = {"tcp-rtt": 1.03, "udp-sendto": 1.03, "udp-send": 1.03, "tcp-connect": None}
    for command, bar in bars.items():
        measured = _measure(bench, command, variants)
        words = f"{OPERATIONS[command][0]} to no resource"
        facts, floors = _floors(words, measured, "large")
        ratio = measured.ratio("large", "bare")
        rows += [ratio_row(words, ratio, bar, key="no-resource", facts=facts), *floors]
    return rows


def selectors(bench: Bench) -> list[Row]:
    """The client named by its cgroup and by its program instead of its user, 1,000 bindings."""
    rows = []
    variants = [bench.variant(name) for name in ("bare", "thousand", "by-cgroup", "by-path")]
    kinds = {"thousand": "unix:uid", "by-cgroup": "cgroup:path", "by-path": "unix:path"}
    for command in ("tcp-connect", "tcp-rtt", "udp-sendto", "udp-send"):
        measured = _measure(bench, command, variants)
        for name, kind in kinds.items():
            ratio = measured.ratio(name, "bare")
            rows.append(
                ratio_row(f"{OPERATIONS[command][0]}, licensed by {kind}, over bare", ratio, None)
            )
    return rows


def scale(bench: Bench) -> list[Row]:
    """The large policy against the small one: two agents side by side."""
    rows = []
    sizes = f"{bench.bindings:,} bindings and {bench.networks:,} networks over 10 of each"
    variants = [bench.variant("small"), bench.variant("large")]
    for command in ("tcp-connect", "tcp-rtt", "udp-sendto", "udp-send"):
        measured = _measure(bench, command, variants)
        ratio = measured.ratio("large", "small")
        rows.append(ratio_row(f"{OPERATIONS[command][0]}: {sizes}", ratio, 1.15, key="scale"))
    return rows
