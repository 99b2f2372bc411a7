# SPDX-License-Identifier: Apache-2.0
"""Threads by taskstats, their owners by /proc and process events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

import psutil

from licagent.domain.usage import Meter, Quality
from licagent.metering.fallback.identity import LARGEST_CACHE, Identity, ProcFolder, Stat
from licagent.metering.fallback.procevents import (
    ProcEvent,
    ProcEvents,
    ProcEventsUnavailable,
    What,
)
from licagent.metering.fallback.tally import Tally, Used
from licagent.metering.fallback.taskstats import TaskStats, ThreadStats

_LOOK_AGAIN: Final = 8
"""A process's user, cgroup and executable are read anew at every so many samples, besides when
an event says so: the kernel tells nobody that a process was moved to another cgroup."""

_TASKSTATS_QUALITY: Final = MappingProxyType(
    {
        # An exit record is written before the memory of the process is taken down.
        Meter.CPU_NS: Quality.ESTIMATED,
        Meter.READ_BYTES: Quality.EXACT,
        Meter.WRITE_BYTES: Quality.EXACT,
        Meter.CANCELLED_BYTES: Quality.EXACT,
        Meter.MEMORY_BYTE_MS: Quality.ESTIMATED,
        Meter.PROCESSES: Quality.EXACT,
    }
)


class TaskstatsSource:
    """Threads by taskstats, owners by /proc and process events."""

    name = "taskstats"

    def __init__(
        self,
        tally: Tally,
        proc: ProcFolder,
        *,
        stats: TaskStats | None = None,
        events: Callable[[], ProcEvents] = ProcEvents,
        pids: Callable[[], list[int]] = psutil.pids,
    ) -> None:
        """TaskStatsUnavailable where it cannot be."""
        self._tally = tally
        self._proc = proc
        self._stats = stats or TaskStats()
        self._listen_to_events = events
        self._pids = pids
        self._events: ProcEvents | None = None
        self._waiting: list[ThreadStats] = []
        self._collected_ns = 0
        self._round = 0
        self._paths: dict[tuple[int, int], str] = {}
        self.lost = 0

    @property
    def quality(self) -> Mapping[Meter, Quality]:
        """Kernels whose records do not say what ended leave that to a guess."""
        quality = dict(_TASKSTATS_QUALITY)
        if not self._stats.tells_process:
            quality[Meter.PROCESSES] = Quality.ESTIMATED
        return quality

    def begin(self, *, resumed: bool) -> None:
        """Listen first, sample then: what ends in between has a record."""
        with suppress(ProcEventsUnavailable):
            self._events = self._listen_to_events()
        self._stats.listen()
        self._collected_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._sample_all(is_first=True, is_old=not resumed)

    def drain(self) -> None:
        """Take in events and records, in an order in which each finds what it needs.

        Records are read before events, so that the births of those who ended are known; and
        after them, so that exec finds the ends of the other threads (it ends them first). What
        comes with that second look from someone unknown waits for its birth.
        """
        ended = self._waiting + self._read()
        events = [] if self._events is None else self._events.drain()[0]
        recent = self._read()
        changed = [event.pid for event in events if self._heard(event)]
        self._waiting = [] if self._events is None else [one for one in recent if self._is_new(one)]
        waiting = set(self._waiting)
        for stats in ended + [one for one in recent if one not in waiting]:
            self._ended(stats)
        for pid in changed:
            self._changed(pid)

    def _read(self) -> list[ThreadStats]:
        ended, lost = self._stats.ended()
        self.lost += lost
        return ended

    def _heard(self, event: ProcEvent) -> bool:
        """Whether the process is to be counted as what it was. Lost events cost no counts."""
        if event.what is What.FORK:
            self._tally.born(event.pid, event.parent)
        elif event.what is What.THREAD:
            if not self._stats.tells_process:
                self._tally.thread_born(event.pid, event.parent)
        elif self._tally.was_sampled(event.pid):
            self._tally.becomes(event.pid, self._identity_now(event.pid))
            return True
        else:
            self._tally.became(event.pid, self._identity_now(event.pid))
        return False

    def _is_new(self, stats: ThreadStats) -> bool:
        pid = stats.tgid or self._tally.process_of(stats.tid)
        return self._tally.identity_of(pid) is None

    def collect(self) -> None:
        """Everything that lives, by one /proc/PID/stat and one question a thread."""
        self.drain()
        self._sample_all()

    def executable_of(self, identity: Identity) -> str:
        """From the processes seen so far."""
        return self._paths.get((identity.device, identity.inode), "")

    def close(self) -> None:
        """The kernel notices closed sockets."""
        self._stats.close()
        if self._events is not None:
            self._events.close()

    # ------------------------------------------------------------------ inside

    def _sample_all(self, *, is_first: bool = False, is_old: bool = False) -> None:
        self._proc.forget_cgroups()
        self._round += 1
        before = self._tally.known()
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        living: dict[int, tuple[Stat, list[int]]] = {}
        threads: set[int] = set()
        for pid in self._pids():
            stat = self._proc.stat(pid)
            if stat is None:
                continue
            present = [pid] if stat.threads == 1 and not stat.is_ending else self._proc.threads(pid)
            threads.update(present)
            living[pid] = (stat, [tid for tid in present if self._counts(pid, tid)])
        counts = self._stats.of(tid for _, tids in living.values() for tid in tids)
        for pid, (stat, tids) in living.items():
            # The id may be another process's thread by now.
            found = [
                (tid, _used(counts[tid]))
                for tid in tids
                if tid in counts and counts[tid].tgid in (0, pid)
            ]
            if not found:
                continue
            old = [tid for tid in tids if is_old or (is_first and self._ends(pid, tid))]
            since = max(self._collected_ns, stat.start_ns)
            memory = stat.resident_bytes * max(0, now - since) // 1_000_000
            self._sampled(pid, stat, found, memory, old)
        dead = [
            (pid, tid)
            for pid, (_, tids) in (living.items() if is_first else ())
            for tid in tids
            if (stat := self._proc.stat(pid, tid)) is not None and stat.is_dead
        ]
        self.drain()
        for pid, tid in dead:
            self._tally.recorded_before(pid, tid)
        self._tally.forget(before, set(living), threads)
        self._collected_ns = now

    def _counts(self, pid: int, tid: int) -> bool:
        """Whether a thread is to be asked: one that ends has its record, or will."""
        return not self._tally.was_recorded(tid) or not self._ends(pid, tid)

    def _ends(self, pid: int, tid: int) -> bool:
        """Whether a thread is ending or gone.

        Of those that end while a sampler begins nobody can tell whether a former one had their
        record; so they are taken for counted.
        """
        stat = self._proc.stat(pid, tid)
        return stat is None or stat.is_ending

    def _sampled(
        self, pid: int, stat: Stat, found: list[tuple[int, Used]], memory: int, old: list[int]
    ) -> None:
        known = self._tally.identity_of(pid)
        is_known = self._tally.knows(pid, stat.start_ns)
        if known is None or not is_known or (self._round + pid) % _LOOK_AGAIN == 0:
            identity = self._proc.identity(pid, stat, known)
            if known is not None and is_known:
                # Until now it was who it was.
                self._tally.sampled(pid, stat.start_ns, known, found, memory_byte_ms=memory)
                self._tally.became(pid, identity)
                return
            self._remember(identity)
            known = identity
        self._tally.sampled(pid, stat.start_ns, known, found, memory_byte_ms=memory, old=old)

    def _changed(self, pid: int) -> None:
        """A process has another executable or user: what it used so far was the former's."""
        known = self._tally.identity_of(pid)
        stat = self._proc.stat(pid)
        if (
            known is not None
            and stat is not None
            and self._tally.knows(pid, stat.start_ns)
            and not stat.is_ending
        ):
            tids = [tid for tid in self._proc.threads(pid) if self._counts(pid, tid)]
            found = [(tid, _used(stats)) for tid, stats in self._stats.of(tids).items()]
            if found:
                self._tally.sampled(pid, stat.start_ns, known, found)
        self._tally.became(pid, self._tally.identity_of_child(pid) or Identity())

    def _identity_now(self, pid: int) -> Identity:
        identity = self._proc.after_exec(pid, self._tally.identity_of_child(pid) or Identity())
        self._remember(identity)
        return identity

    def _ended(self, stats: ThreadStats) -> None:
        identity = Identity(
            uid=stats.uid,
            gid=stats.gid,
            device=stats.device,
            inode=stats.inode,
            comm=stats.comm,
        )
        is_last = stats.is_last
        if is_last is None:
            is_last = self._tally.process_of(stats.tid) == stats.tid
        self._tally.ended(stats.tid, stats.tgid, _used(stats), identity, is_last)

    def _remember(self, identity: Identity) -> None:
        if identity.inode and identity.executable:
            if len(self._paths) >= LARGEST_CACHE:
                self._paths.clear()
            self._paths[identity.device, identity.inode] = identity.executable


def _used(stats: ThreadStats) -> Used:
    return Used(stats.cpu_ns, stats.read_bytes, stats.write_bytes, stats.cancelled_bytes)
