# SPDX-License-Identifier: Apache-2.0
"""`./dev bench`: every bar of the project, in paired runs on this machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench import (
    control_cases,
    control_host,
    daemon_cases,
    iperf3_case,
    meter_beside,
    meter_cases,
    meter_load,
    meter_spawn,
    paired,
    table,
    traffic_cases,
    usage_throughput,
)
from tests.bench.context import Bench
from tests.bench.places import Places, kept_awake
from tests.bench.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable

CASES: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    "meter-spawn": meter_spawn.spawn,  # first: it needs a kernel without any agent's programs
    "noise": traffic_cases.noise,
    "nftables": traffic_cases.nftables,
    "connect": traffic_cases.connect,
    "round-trip": traffic_cases.round_trip,
    "udp": traffic_cases.udp,
    "iperf3": iperf3_case.iperf3,
    "no-resource": traffic_cases.unlicensed,
    "selectors": traffic_cases.selectors,
    "scale": traffic_cases.scale,
    "revocation": daemon_cases.revocation,
    "start": daemon_cases.start,
    "daemon": daemon_cases.daemon,
    "memory": daemon_cases.memory,
    "policy": daemon_cases.policy,
    "meter-sample": meter_cases.sample,
    "meter-churn": meter_cases.churn,
    "meter-beside": meter_beside.beside,
    "usage-throughput": usage_throughput.throughput,
    "usage-outage": usage_throughput.outage,
    "control-revocation": control_host.revocation,
    "control-fanout": control_cases.fanout,
    "control-idle": control_cases.idle,
    "control-reconnect": control_cases.reconnect,
    "control-push": control_host.push,
    "control-memory": control_host.memory,
}

BUSY_LOAD: Final = 0.5
"""Runnable threads before the start above which figures are said to be disturbed."""

EXTRA: Final = ("nftables",)
"""Cases whose rows others repeat: run only when asked for by name."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", choices=CASES, help=", ".join(CASES)
    )
    parser.add_argument("--loader", default="auto", choices=("auto", "prebuilt", "bcc"))
    parser.add_argument("--bindings", type=int, default=100_000)
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--churn-minutes", type=float, default=2.0, help="of meter-churn")
    parser.add_argument("--outage-hours", type=float, default=1.0, help="of usage-outage")
    parser.add_argument(
        "--markdown", type=Path, help="default: docs/benchmarks.md after a full run of all cases"
    )
    return parser.parse_args()


def main() -> int:
    """Exit status: 0 every bar met, 1 one missed, 2 a case could not be run."""
    arguments = _arguments()
    if os.geteuid():
        print("the bench makes cgroups and network namespaces: run it as root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # so that the clean-up runs
    paired.build()
    meter_load.build()
    load = table.load()
    if load > BUSY_LOAD:
        print(f"bench: load {load}: other programs will show in the figures", file=sys.stderr)
    rows: list[Row] = []
    broken = False
    wanted = arguments.only or [name for name in CASES if name not in EXTRA]
    names = [name for name in CASES if name in wanted]
    places = Places()
    bench = Bench(
        places,
        arguments.quick,
        arguments.loader,
        arguments.bindings,
        arguments.networks,
        arguments.churn_minutes,
        arguments.outage_hours,
    )
    try:
        with kept_awake():
            for name in names:
                started = time.monotonic()
                print(f"bench: {name} ...", file=sys.stderr, flush=True)
                try:
                    rows += CASES[name](bench)
                except Exception as error:  # noqa: BLE001 - the other cases still tell something
                    traceback.print_exc()
                    broken = True
                    rows.append(
                        Row(name, " ".join(f"could not run: {error}".split())[:160], passed=False)
                    )
                spent = time.monotonic() - started
                print(f"bench: {name} took {spent:.0f} s", file=sys.stderr, flush=True)
    finally:
        bench.close()
        places.close()
    print(table.text(rows))
    target = arguments.markdown
    if target is None and not arguments.only and not arguments.quick:
        target = paired.ROOT / "docs" / "benchmarks.md"
    if target is not None:
        target.write_text(table.markdown(rows, quick=arguments.quick, load=load), encoding="utf-8")
        print(f"bench: wrote {target}", file=sys.stderr)
    if broken:
        return 2
    return int(any(row.passed is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
