# SPDX-License-Identifier: Apache-2.0
"""What one would write with psutil: every 5 s the CPU time of each process, summed by name.

Run as a program it goes on until SIGTERM, then prints {name: CPU seconds}. `sample` is used by the
bench for the cost of one look at many processes.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

INTERVAL_S: Final = 5.0


def sample(processes: Iterable[psutil.Process]) -> int:
    """Read of each what a row of the meter has: identity, CPU, storage I/O, memory.

    Executable and control group, which the meter has too, are left out: psutil reads the first
    slowly and the second not at all. Returns the number of processes read.
    """
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            process.create_time()
            process.name()
            process.uids()
            process.gids()
            process.cpu_times()
            process.io_counters()
            process.memory_info()
            count += 1
    return count


def main() -> None:
    """Sample until SIGTERM, then once more."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    seen: dict[psutil.Process, float] = {}
    totals: dict[str, float] = {}
    while True:
        ended = stop.wait(INTERVAL_S)
        now: dict[psutil.Process, float] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
                times = process.cpu_times()
                used_s = times.user + times.system
                name = process.name()
                totals[name] = totals.get(name, 0.0) + used_s - seen.get(process, 0.0)
                now[process] = used_s
        seen = now
        if ended:
            break
    json.dump(totals, sys.stdout)


if __name__ == "__main__":
    main()
