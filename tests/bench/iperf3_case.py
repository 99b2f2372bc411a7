# SPDX-License-Identifier: Apache-2.0
"""iperf3's throughput under the agent, over bare."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from tests.bench import paired
from tests.bench.paired import Spread
from tests.bench.places import CLIENT_UID, IPERF_PORT, SERVER
from tests.bench.table import Row, ratio_row

if TYPE_CHECKING:
    from tests.bench.context import Bench
    from tests.bench.paired import Variant

_PAIRS_MIN: Final = 4


def iperf3(bench: Bench) -> list[Row]:
    """iperf3's throughput.

    The bar is judged with both ends on one CPU, where throughput is the work that a byte costs.
    On two CPUs it is who wakes whom and how far the window opened: there the same cgroup twice
    differs by tens of percent, a fixed window (256 KiB) tames that somewhat.
    """
    variants = [bench.variant(name) for name in ("bare", "large", "floor")]
    pairs, limit_s = (16, 25.0) if bench.quick else (60, 60.0)
    command = ["iperf3", "-s", "-B", SERVER, "-p", str(IPERF_PORT)]
    server = subprocess.Popen(
        ["nsenter", f"--net={bench.places.plain.path}", *command], stdout=subprocess.DEVNULL
    )
    try:
        _await_listener(bench)
        one = _iperf3_rates(variants, pairs, limit_s, "-n", "1G", "-A", "0,0")
        two = _iperf3_rates(
            variants[:2], pairs // 4, limit_s / 2, "-n", "2G", "-A", "0,1", "-w", "256K"
        )
    finally:
        server.kill()
        server.wait()
    gbits = statistics.median(one["bare"]) / 1e9
    ratio, other, empty = (
        Spread.of([a / b for a, b in zip(rates[name], rates["bare"], strict=True)])
        for rates, name in ((one, "large"), (two, "large"), (one, "floor"))
    )
    stream = paired.run("tcp-stream", variants, "--rounds", bench.rounds(100), "--server-cpu", "0")
    words = f"iperf3 on loopback (bare {gbits:.1f} Gbit/s)"
    return [
        ratio_row(words, ratio, 0.97, at_least=True, key="iperf3"),
        ratio_row("iperf3 on loopback: empty programs over bare", empty, None),
        ratio_row("iperf3 on loopback, two CPUs, window 256 KiB", other, None),
        ratio_row("bulk TCP of the probe, rate over bare", stream.ratio("bare", "large"), None),
    ]


def _iperf3_rates(
    variants: list[Variant], pairs: int, limit_s: float, *options: str
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {v.name: [] for v in variants}
    _iperf3_rate(variants[0], *options)  # the first run after a start is slower
    deadline = time.monotonic() + limit_s
    for i in range(pairs):
        if i >= _PAIRS_MIN and time.monotonic() > deadline:
            break
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
