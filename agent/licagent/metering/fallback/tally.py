# SPDX-License-Identifier: Apache-2.0
"""From cumulative counts of threads to what each owner used. Knows no kernel; tested with any.

A thread's count only grows, and its exit record has the last value. So what is to be counted is
the difference to the last value seen, whoever brings it. The rule that keeps a dead thread from
being counted twice: once its record came, its id counts again only when something that is not
ending has it, because then it is another thread.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from licagent.metering.fallback.identity import Identity

_VERSION: Final = 1


class Used(NamedTuple):
    """Cumulative counts of a thread."""

    cpu_ns: int
    read_bytes: int
    write_bytes: int
    cancelled_bytes: int

    def since(self, before: Used) -> Used | None:
        """The difference; None where a count went back, so that it is not the same thread."""
        if any(now < then for now, then in zip(self, before, strict=True)):
            return None
        return Used(*(now - then for now, then in zip(self, before, strict=True)))


NOTHING: Final = Used(0, 0, 0, 0)


class Owner(NamedTuple):
    """Whom a row is for."""

    pid: int
    start_ns: int
    identity: Identity


@dataclass(slots=True)
class Amount:
    """What an owner used in the open sheet."""

    cpu_ns: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    cancelled_bytes: int = 0
    memory_byte_ms: int = 0
    processes: int = 0
    ends: int = 0
    """Threads that ended; each had a little CPU time that no record has."""

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(
            self.cpu_ns
            or self.read_bytes
            or self.write_bytes
            or self.cancelled_bytes
            or self.memory_byte_ms
            or self.processes
        )

    def add(self, used: Used) -> None:
        """Take a difference in."""
        self.cpu_ns += used.cpu_ns
        self.read_bytes += used.read_bytes
        self.write_bytes += used.write_bytes
        self.cancelled_bytes += used.cancelled_bytes


class Known(NamedTuple):
    """What a tally knew at one moment."""

    processes: frozenset[int]
    recorded: frozenset[int]


@dataclass(slots=True)
class _Process:
    pid: int
    start_ns: int
    identity: Identity
    threads: dict[int, Used] = field(default_factory=dict)
    """Last values, by thread id."""
    was_sampled: bool = False
    """It lived at a sample; otherwise its row has no pid of its own."""
    coming: Identity | None = None
    """Who it is since an exec that is known of, once what it used before is counted."""
    leader_ended: bool = False
    """The record of its first thread came. If that lives nevertheless, another took its place."""
    vanished: list[int] = field(default_factory=list)
    """Threads that the last sample missed; their records may be on their way."""

    @property
    def owner(self) -> Owner:
        """For rows of a process that was sampled."""
        return Owner(self.pid, self.start_ns, self.identity)


class Tally:
    """The counts of all threads, and the open sheet."""

    def __init__(self) -> None:
        self._processes: dict[int, _Process] = {}
        self._process_of: dict[int, int] = {}
        self._recorded: set[int] = set()
        """Thread ids whose exit record came and that have not been seen as another's since."""
        self._sheet: dict[Owner, Amount] = {}
        self._inherited: dict[tuple[int, int], dict[int, Used]] = {}

    # ------------------------------------------------------------------ who

    def identity_of(self, pid: int) -> Identity | None:
        """Of a process that is known."""
        process = self._processes.get(pid)
        return None if process is None else process.identity

    def knows(self, pid: int, start_ns: int) -> bool:
        """Whether this very process was sampled already."""
        process = self._processes.get(pid)
        return process is not None and process.was_sampled and process.start_ns == start_ns

    def identity_of_child(self, pid: int) -> Identity | None:
        """What a process that forks now is, though its row may still be for what it was."""
        process = self._processes.get(pid)
        return None if process is None else process.coming or process.identity

    def becomes(self, pid: int, identity: Identity) -> None:
        """A process is somebody else, and what it used until now is to be counted first."""
        process = self._processes.get(pid)
        if process is not None:
            process.coming = identity

    def was_sampled(self, pid: int) -> bool:
        """Whether a process of this id has a row of its own."""
        process = self._processes.get(pid)
        return process is not None and process.was_sampled

    def born(self, pid: int, parent: int) -> None:
        """A process was forked: until more is known it is what its parent is."""
        identity = self.identity_of_child(parent) or Identity()
        former = self._processes.get(pid)
        # The exit record of the id's former owner may be still on its way, and needs these.
        threads = former.threads if former is not None else {}
        self._processes[pid] = _Process(pid, 0, identity, threads)

    def thread_born(self, tid: int, pid: int) -> None:
        """For kernels whose exit records do not say whose thread it was."""
        self._process_of[tid] = pid

    def became(self, pid: int, identity: Identity) -> None:
        """A process is somebody else from now on (exec, or another user)."""
        process = self._processes.get(pid)
        if process is None:
            self._processes[pid] = _Process(pid, 0, identity)
        else:
            process.identity, process.coming = identity, None

    # ------------------------------------------------------------------ how much

    def was_recorded(self, tid: int) -> bool:
        """Its exit record came: sample it only if it is not ending."""
        return tid in self._recorded

    def sampled(
        self,
        pid: int,
        start_ns: int,
        identity: Identity,
        threads: Iterable[tuple[int, Used]],
        *,
        memory_byte_ms: int = 0,
        old: Container[int] = (),
    ) -> None:
        """Counts of a living process's threads. Those in `old` used them before this began."""
        process = self._settle(pid, start_ns, identity)
        living = dict(threads)
        amount = self._amount(process.owner)
        amount.memory_byte_ms += memory_byte_ms
        vanished = [tid for tid in process.threads if tid not in living]
        for tid, used in living.items():
            before = process.threads.get(tid)
            if before is None:
                before = self._first_value(process, tid, vanished, used if tid in old else NOTHING)
            difference = used.since(before)
            amount.add(used if difference is None else difference)
            process.threads[tid] = used
            self._process_of[tid] = pid
            self._recorded.discard(tid)
        process.vanished = [tid for tid in vanished if tid in process.threads]
        process.was_sampled = True

    def ended(self, tid: int, pid: int, used: Used, identity: Identity, is_last: bool) -> None:
        """The exit record of a thread; `pid` 0 where the kernel did not say whose it was."""
        pid = pid or self._process_of.get(tid, tid)
        process = self._processes.get(pid)
        if process is None:
            process = self._processes[pid] = _Process(pid, 0, identity)
        if tid in process.threads:
            before = process.threads.pop(tid)
        else:
            before = self._first_value(process, tid, list(process.threads), NOTHING)
        process.leader_ended |= tid == pid
        difference = used.since(before)
        amount = self._amount(self._owner_of_ended(process, identity))
        amount.add(used if difference is None else difference)
        self._process_of.pop(tid, None)
        self._recorded.add(tid)
        amount.ends += 1
        if is_last:
            amount.processes += 1

    def recorded_before(self, pid: int, tid: int) -> None:
        """It was dead when this began: its exit record, if none came by now, will not come."""
        process = self._processes.get(pid)
        if process is not None and process.threads.pop(tid, None) is not None:
            process.leader_ended |= tid == pid
            self._process_of.pop(tid, None)
            self._recorded.add(tid)

    def process_of(self, tid: int) -> int:
        """Whose thread it is, as far as is known; it is its own process's first one otherwise."""
        return self._process_of.get(tid, tid)

    def known(self) -> Known:
        """What is known before a sample of everything; for `forget` after it."""
        return Known(frozenset(self._processes), frozenset(self._recorded))

    def forget(self, before: Known, processes: set[int], threads: set[int]) -> list[Owner]:
        """Forget what was known before a sample and is not in it; the processes among it.

        Only after the exit records that had come by the time of the sample were taken in: what
        has no record then lost it.
        """
        gone = []
        for pid in before.processes - processes:
            process = self._processes.pop(pid)
            for tid in process.threads:
                self._process_of.pop(tid, None)
            if process.was_sampled:
                gone.append(process.owner)
        for process in self._processes.values():
            for tid in process.vanished:
                process.threads.pop(tid, None)
                self._process_of.pop(tid, None)
            process.vanished = []
        # Ids that are still there are zombies; those that are not were reaped.
        self._recorded -= before.recorded - threads
        return gone

    def count_end(self, owner: Owner) -> None:
        """A process ended, as far as samples tell."""
        self._amount(owner).processes += 1

    # ------------------------------------------------------------------ sheets

    def take_sheet(self) -> dict[Owner, Amount]:
        """What was used since the last call; a new sheet begins."""
        sheet, self._sheet = self._sheet, {}
        return sheet

    def sheet(self) -> dict[Owner, Amount]:
        """The open sheet."""
        return self._sheet

    def baseline(self, boot_id: str, number: int) -> bytes:
        """The last values of all threads when sheet `number` was closed; for `resume`."""
        processes = [
            [process.pid, process.start_ns, [[tid, *used] for tid, used in process.threads.items()]]
            for process in self._processes.values()
            if process.was_sampled
        ]
        content = {
            "version": _VERSION,
            "boot": boot_id,
            "number": number,
            "processes": processes,
        }
        return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 1)

    def resume(self, baseline: bytes, boot_id: str) -> int:
        """Go on from a baseline of this boot; its sheet's number, or -1 where it is none."""
        if not baseline:
            return -1
        try:
            content: dict[str, Any] = json.loads(zlib.decompress(baseline))
            if content["version"] != _VERSION or content["boot"] != boot_id:
                return -1
            self._inherited = {
                (pid, start_ns): {tid: Used(*used) for tid, *used in threads}
                for pid, start_ns, threads in content["processes"]
            }
            return int(content["number"])
        except (zlib.error, ValueError, KeyError, TypeError):
            self._inherited = {}
            return -1

    def resumed(self) -> None:
        """After the first sample: what the baseline had and nobody was is gone."""
        self._inherited = {}

    # ------------------------------------------------------------------ inside

    def _settle(self, pid: int, start_ns: int, identity: Identity) -> _Process:
        """The process that is sampled, made or put in the place of a former one of that id."""
        process = self._processes.get(pid)
        if process is None or (process.was_sampled and process.start_ns != start_ns):
            process = self._processes[pid] = _Process(pid, start_ns, identity)
        if not process.was_sampled:
            process.start_ns = start_ns
            process.threads.update(self._inherited.pop((pid, start_ns), {}))
        process.identity = identity
        return process

    def _first_value(
        self, process: _Process, tid: int, vanished: list[int], otherwise: Used
    ) -> Used:
        """What a thread had when it was counted last, though not under this id.

        A thread that is not the leader and calls exec takes the leader's id (de_thread(),
        fs/exec.c). Then all others ended, with records, and it vanished without one.
        """
        if tid == process.pid and process.leader_ended and len(vanished) == 1:
            self._process_of.pop(vanished[0], None)
            return process.threads.pop(vanished[0])
        return otherwise

    def _owner_of_ended(self, process: _Process, identity: Identity) -> Owner:
        known = process.identity
        if process.was_sampled:
            return process.owner
        # It lived and died between two samples: one row for all that were the same.
        merged = Identity(
            uid=identity.uid,
            gid=identity.gid,
            cgroup_path=known.cgroup_path,
            executable=known.executable if known.inode in (0, identity.inode) else "",
            device=identity.device or known.device,
            inode=identity.inode or known.inode,
            comm=identity.comm,
        )
        return Owner(0, 0, merged)

    def _amount(self, owner: Owner) -> Amount:
        amount = self._sheet.get(owner)
        if amount is None:
            amount = self._sheet[owner] = Amount()
        return amount
