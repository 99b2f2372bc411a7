# SPDX-License-Identifier: Apache-2.0
"""Costs of traffic: bare, under the agent, and under nftables that does the same job by uid."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from tests.bench import paired
from tests.bench.paired import Paired, Spread
from tests.bench.places import CLIENT_UID, IPERF_PORT, NO_RESOURCE, SERVER
from tests.bench.table import Row, ratio_row

if TYPE_CHECKING:
    from tests.bench.context import Bench
    from tests.bench.paired import Variant

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
    return paired.run(command, variants, "--rounds", rounds, *options)


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


def licensed(bench: Bench, command: str, bar: float | None, *, nft_bar: bool = True) -> list[Row]:
    """One operation: the agent over bare, and over nftables."""
    words = f"{OPERATIONS[command][0]}, licensed"
    variants = [bench.variant(name) for name in ("bare", "large", "nft")]
    measured = _measure(bench, command, variants)
    first = ratio_row(words, measured.ratio("large", "bare"), bar)
    rows = [
        Row(
            f"{words} ({_costs(measured)})",
            first.measured,
            first.spread,
            first.bar,
            first.passed,
        ),
        ratio_row(f"{words}: agent over nftables", measured.ratio("large", "nft"), 1.0)
        if nft_bar
        else ratio_row(f"{words}: agent over nftables", measured.ratio("large", "nft"), None),
        ratio_row(f"{words}: nftables over bare", measured.ratio("nft", "bare"), None),
    ]
    if command in {"tcp-connect", "tcp-rtt"}:
        remote = _measure(bench, command, variants, "--remote")
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
    variants = [bench.variant(name, NO_RESOURCE) for name in ("bare", "large")]
    for command, bar in (("tcp-rtt", 1.03), ("udp-sendto", 1.03), ("udp-send", 1.03)):
        measured = _measure(bench, command, variants)
        words = f"{OPERATIONS[command][0]} to no resource"
        rows.append(ratio_row(words, measured.ratio("large", "bare"), bar))
    connects = _measure(bench, "tcp-connect", variants)
    words = f"{OPERATIONS['tcp-connect'][0]} to no resource"
    rows.append(ratio_row(words, connects.ratio("large", "bare"), None))
    return rows


def scale(bench: Bench) -> list[Row]:
    """The large policy against the small one: two agents side by side."""
    rows = []
    sizes = f"{bench.bindings:,} bindings and {bench.networks:,} networks over 10 of each"
    variants = [bench.variant("small"), bench.variant("large")]
    for command in ("tcp-connect", "tcp-rtt", "udp-sendto", "udp-send"):
        measured = _measure(bench, command, variants)
        ratio = measured.ratio("large", "small")
        rows.append(ratio_row(f"{OPERATIONS[command][0]}: {sizes}", ratio, 1.15))
    return rows


def iperf3(bench: Bench) -> list[Row]:
    """iperf3's throughput.

    The bar is judged with both ends on one CPU, where throughput is the work that a byte costs.
    On two CPUs it is who wakes whom and how far the window opened: there the same cgroup twice
    differs by tens of percent, a fixed window (256 KiB) tames that somewhat.
    """
    variants = [bench.variant("bare"), bench.variant("large")]
    pairs = 20 if bench.quick else 100
    command = ["iperf3", "-s", "-B", SERVER, "-p", str(IPERF_PORT)]
    server = subprocess.Popen(
        ["nsenter", f"--net={bench.places.plain.path}", *command], stdout=subprocess.DEVNULL
    )
    try:
        _await_listener(bench)
        one = _iperf3_rates(variants, pairs, "-n", "1G", "-A", "0,0")
        two = _iperf3_rates(variants, pairs // 4, "-n", "2G", "-A", "0,1", "-w", "256K")
    finally:
        server.kill()
        server.wait()
    gbits = sorted(one["bare"])[pairs // 2] / 1e9
    ratio, other = (
        Spread.of([a / b for a, b in zip(rates["large"], rates["bare"], strict=True)])
        for rates in (one, two)
    )
    stream = paired.run("tcp-stream", variants, "--rounds", bench.rounds(100), "--server-cpu", "0")
    return [
        ratio_row(f"iperf3 on loopback (bare {gbits:.1f} Gbit/s)", ratio, 0.97, at_least=True),
        ratio_row("iperf3 on loopback, two CPUs, window 256 KiB", other, None),
        ratio_row("bulk TCP of the probe, rate over bare", stream.ratio("bare", "large"), None),
    ]


def _iperf3_rates(variants: list[Variant], pairs: int, *options: str) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {v.name: [] for v in variants}
    _iperf3_rate(variants[0], *options)  # the first run after a start is slower
    for i in range(pairs):
        for variant in variants if i % 2 else variants[::-1]:
            rates[variant.name].append(_iperf3_rate(variant, *options))
    return rates


def _await_listener(bench: Bench) -> None:
    deadline = time.monotonic() + 10
    show = ["nsenter", f"--net={bench.places.plain.path}", "ss", "-Hltn"]
    while f":{IPERF_PORT}" not in subprocess.getoutput(shlex.join(show)):
        if time.monotonic() > deadline:
            raise RuntimeError("the iperf3 server does not listen after 10 s")
        time.sleep(0.05)


def _iperf3_rate(variant: Variant, *options: str) -> float:
    script = 'echo $$ > "$CGROUP/cgroup.procs" && exec "$@"'
    user = ["setpriv", f"--reuid={CLIENT_UID}", "--clear-groups"]
    client = ["iperf3", "-c", SERVER, "-p", str(IPERF_PORT), "-J", *options]
    command = ["sh", "-c", script, "sh", "nsenter", f"--net={variant.netns}", *user, *client]
    done = subprocess.run(
        command,
        env={**os.environ, "CGROUP": str(variant.cgroup)},
        stdout=subprocess.PIPE,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout or b"{}")
    if done.returncode or "end" not in found or "sum_received" not in found["end"]:
        raise RuntimeError(
            f"iperf3 failed in {variant.name}: {found.get('error', done.returncode)}"
        )
    rate: float = found["end"]["sum_received"]["bits_per_second"]
    return rate
