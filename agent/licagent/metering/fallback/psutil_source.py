# SPDX-License-Identifier: Apache-2.0
"""Processes by psutil, at the moments of samples."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

import psutil

from licagent.domain.usage import Meter, Quality
from licagent.metering.fallback.identity import Identity, ProcFolder
from licagent.metering.fallback.tally import Tally, Used

_PSUTIL_QUALITY: Final = MappingProxyType(
    {
        Meter.CPU_NS: Quality.ESTIMATED,
        Meter.READ_BYTES: Quality.ESTIMATED,
        Meter.WRITE_BYTES: Quality.ESTIMATED,
        Meter.CANCELLED_BYTES: Quality.UNSUPPORTED,
        Meter.MEMORY_BYTE_MS: Quality.ESTIMATED,
        Meter.PROCESSES: Quality.ESTIMATED,
    }
)


class PsutilSource:
    """Processes by psutil, at the moments of samples."""

    name = "psutil"

    def __init__(self, tally: Tally, proc: ProcFolder) -> None:
        self._tally = tally
        self._proc = proc
        self._collected_ns = 0
        self.lost = 0

    @property
    def quality(self) -> Mapping[Meter, Quality]:
        """CPU in clock ticks, and a parent's input and output has that of its dead children."""
        return _PSUTIL_QUALITY

    def begin(self, *, resumed: bool) -> None:
        """First sample."""
        self._collected_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._sample_all(is_old=not resumed)

    def drain(self) -> None:
        """The kernel tells nothing here."""

    def collect(self) -> None:
        """Everything that lives."""
        self._sample_all(is_old=False)

    def executable_of(self, _identity: Identity) -> str:
        """Whoever is known here is known with its path."""
        return ""

    def close(self) -> None:
        """Nothing is open."""

    def _sample_all(self, *, is_old: bool) -> None:
        self._proc.forget_cgroups()
        before = self._tally.known()
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        living: set[int] = set()
        for process in psutil.process_iter():
            stat = self._proc.stat(process.pid)
            if stat is None or stat.is_ending:
                continue
            with suppress(psutil.Error):
                used = _used_by(process)
                living.add(process.pid)
                identity = self._proc.identity(
                    process.pid, stat, self._tally.identity_of(process.pid)
                )
                since = max(self._collected_ns, stat.start_ns)
                memory = stat.resident_bytes * max(0, now - since) // 1_000_000
                self._tally.sampled(
                    process.pid,
                    stat.start_ns,
                    identity,
                    [(process.pid, used)],
                    memory_byte_ms=memory,
                    old=[process.pid] if is_old else (),
                )
        for owner in self._tally.forget(before, living, living):
            self._tally.count_end(owner)
        self._collected_ns = now


def _used_by(process: psutil.Process) -> Used:
    with process.oneshot():
        times = process.cpu_times()
        read = written = 0
        with suppress(psutil.AccessDenied, AttributeError):
            counters = process.io_counters()
            read, written = counters.read_bytes, counters.write_bytes
    return Used(round((times.user + times.system) * 1_000_000_000), read, written, 0)
