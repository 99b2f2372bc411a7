# SPDX-License-Identifier: Apache-2.0
"""The fallback meter's own process: samples, listens, and gives sheets when asked.

Process events and exit records have to be taken in all the time, and the modules for it weigh
25 MB; in a child neither is the daemon's burden. Speaks JSON, one object a line: requests on
standard input, one answer each on standard output. It ends when its input does.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from typing import Any

from licagent.domain.usage import Quality
from licagent.metering.fallback.identity import ProcFolder
from licagent.metering.fallback.psutil_source import PsutilSource
from licagent.metering.fallback.remainder import Remainders
from licagent.metering.fallback.sources import Drainer, Source
from licagent.metering.fallback.tally import Amount, Owner, Tally
from licagent.metering.fallback.taskstats import TaskStatsUnavailable
from licagent.metering.fallback.taskstats_source import TaskstatsSource


class Collector:
    """A source, its tally, and the number of the open sheet."""

    def __init__(self, boot_id: str, baseline: bytes, wanted: str = "") -> None:
        """`wanted` names a source; "" is the best that works."""
        self._boot_id = boot_id
        self._tally = Tally()
        self._proc = ProcFolder()
        self._lock = threading.Lock()
        resumed = self._tally.resume(baseline, boot_id)
        self.number = max(0, resumed) + 1
        self.problem = ""
        self._source = self._begin(wanted, resumed=resumed >= 0)
        self._tally.resumed()
        self._remainders = Remainders(self._proc.cgroup2_root)
        self._opened_ns = _now_ns()
        self._lost = 0
        self._drainer = Drainer(self._source, self._lock)

    def _begin(self, wanted: str, *, resumed: bool) -> Source:
        if wanted != "psutil":
            found: TaskstatsSource | None = None
            try:
                found = TaskstatsSource(self._tally, self._proc)
                found.begin(resumed=resumed)
            except TaskStatsUnavailable as error:
                self.problem = str(error)
                if found is not None:
                    found.close()
            else:
                return found
        source = PsutilSource(self._tally, self._proc)
        source.begin(resumed=resumed)
        return source

    def state(self) -> dict[str, Any]:
        """How it samples, and from where a successor would go on."""
        return {
            "source": self._source.name,
            "problem": self.problem,
            "quality": self._quality(0),
            "number": self.number,
            "baseline": self._baseline(self.number - 1),
        }

    def collect(self) -> dict[str, Any]:
        """Sample."""
        with self._lock:
            self._source.collect()
        return {}

    def sheet(self, *, close: bool) -> dict[str, Any]:
        """Sample, and give the sheet; with `close` the next one begins."""
        with self._lock:
            self._source.collect()
            now = _now_ns()
            lost = self._source.lost - self._lost
            owners = self._tally.take_sheet() if close else self._tally.sheet()
            if close:
                self._remainders.divide(owners)
            answer = {
                "number": self.number,
                "opened_ns": self._opened_ns,
                "closed_ns": now,
                "lost": lost,
                "quality": self._quality(lost),
                "rows": [self._row(owner, amount) for owner, amount in owners.items() if amount],
                "baseline": self._baseline(self.number) if close else "",
            }
            if close:
                self.number += 1
                self._opened_ns = now
                self._lost += lost
        return answer

    def _quality(self, lost: int) -> dict[str, str]:
        return {
            meter.key: (Quality.ESTIMATED if lost and quality is Quality.EXACT else quality).value
            for meter, quality in self._source.quality.items()
        }

    def _baseline(self, number: int) -> str:
        return base64.b64encode(self._tally.baseline(self._boot_id, number)).decode()

    def _row(self, owner: Owner, amount: Amount) -> list[int | str]:
        who = owner.identity
        return [
            owner.pid,
            owner.start_ns,
            who.uid,
            who.gid,
            self._proc.cgroup_id(who.cgroup_path),
            _kernel_device(who.device),
            who.inode,
            who.comm,
            who.executable or self._source.executable_of(who),
            who.cgroup_path,
            amount.cpu_ns,
            amount.read_bytes,
            amount.write_bytes,
            amount.cancelled_bytes,
            amount.memory_byte_ms,
            amount.processes,
        ]

    def close(self) -> None:
        """Stop listening."""
        self._drainer.close()
        self._source.close()


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _kernel_device(device: int) -> int:
    """MKDEV() of include/linux/kdev_t.h, as the kernel's own rows have it."""
    return (os.major(device) << 20) | os.minor(device)


def _main() -> None:
    collector: Collector | None = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request["do"]
        if do == "begin":
            baseline = base64.b64decode(request["baseline"])
            collector = Collector(request["boot_id"], baseline, request["wanted"])
            answer = collector.state()
        elif collector is None:
            raise SystemExit(f"{do!r} before begin")
        elif do == "collect":
            answer = collector.collect()
        else:
            answer = collector.sheet(close=do == "close")
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if collector is not None:
        collector.close()


if __name__ == "__main__":
    _main()
