# SPDX-License-Identifier: Apache-2.0
"""Processes that live, end and call exec while they are looked at, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from licagent.metering.fallback.identity import PF_EXITING, Identity, Stat
from licagent.metering.fallback.procevents import ProcEvent, What
from licagent.metering.fallback.taskstats import ThreadStats

MAX_PID = 60
"""Small, so that ids are used again soon: two processes of one id within a sample."""


@dataclass
class Thread:
    tid: int
    cpu_ns: int = 0
    read_bytes: int = 0
    is_ended: bool = False


@dataclass
class Process:
    pid: int
    start_ns: int
    parent: int
    uid: int
    threads: dict[int, Thread] = field(default_factory=dict)


class FakeKernel:
    """All three things that the source asks: /proc, taskstats and process events."""

    def __init__(self, random: Random, *, tells_process: bool = True) -> None:
        self.random = random
        self.tells_process = tells_process
        # Where records do not say whose they are, two threads of one id cannot be told apart.
        self.max_pid = MAX_PID if tells_process else 1_000_000
        self.used_ns = 0
        self.used_by_uid: dict[int, int] = {}
        self.ended_processes = 0
        self.processes: dict[int, Process] = {}
        self.records: list[ThreadStats] = []
        self.events: list[ProcEvent] = []
        self.listening = False
        self.now_ns = 0
        self.next_pid = 1
        self.steps_a_call = 0
        self._new_process(0, uid=1)

    # ------------------------------------------------------------------ what happens

    def step(self, *, exec_too: bool = True) -> None:
        """Something happens."""
        self.now_ns += 10_000_000
        process = self.random.choice(list(self.processes.values()))
        living = [thread for thread in process.threads.values() if not thread.is_ended]
        what = self.random.random()
        if not living:
            if process.pid != 1:
                self._reap(process)
        elif what < 0.45:
            self._work(process, self.random.choice(living))
        elif what < 0.60 and len(self.processes) < MAX_PID // 3:
            self._new_process(process.pid, uid=process.uid)
        elif what < 0.70 and len(process.threads) < 4:
            self._new_thread(process)
        elif what < 0.80:
            thread = self.random.choice(living)
            self._work(process, thread)
            if process.pid != 1:
                self._end(process, thread)
        elif what < 0.90 and process.pid != 1:
            for thread in living:
                self._end(process, thread)
        elif exec_too and process.pid != 1:
            self._exec(process, self.random.choice(living))

    def _id(self) -> int:
        taken = {tid for process in self.processes.values() for tid in process.threads}
        while True:
            self.next_pid = self.next_pid % self.max_pid + 1
            if self.next_pid not in taken and self.next_pid not in self.processes:
                return self.next_pid

    def _new_process(self, parent: int, uid: int) -> None:
        pid = self._id() if parent else 1
        process = self.processes[pid] = Process(pid, self.now_ns, parent, uid)
        process.threads[pid] = Thread(pid)
        self._tell(ProcEvent(What.FORK, pid, parent))

    def _new_thread(self, process: Process) -> None:
        tid = self._id()
        process.threads[tid] = Thread(tid)
        self._tell(ProcEvent(What.THREAD, tid, process.pid))

    def _work(self, process: Process, thread: Thread) -> None:
        amount = self.random.randrange(1, 10**9)
        thread.cpu_ns += amount
        thread.read_bytes += amount // 7
        self.used_ns += amount
        self.used_by_uid[process.uid] = self.used_by_uid.get(process.uid, 0) + amount

    def _end(self, process: Process, thread: Thread) -> None:
        thread.is_ended = True
        is_last = all(one.is_ended for one in process.threads.values())
        if is_last:
            self.ended_processes += 1
        if self.listening:
            self.records.append(self._stats(process, thread, is_last=is_last))
        if thread.tid != process.pid:
            del process.threads[thread.tid]

    def _reap(self, process: Process) -> None:
        del self.processes[process.pid]

    def _exec(self, process: Process, thread: Thread) -> None:
        for other in list(process.threads.values()):
            if other is not thread and not other.is_ended:
                self._end(process, other)
        del process.threads[thread.tid]
        thread.tid = process.pid
        process.threads = {process.pid: thread}
        self._tell(ProcEvent(What.EXEC, process.pid, 0))

    def _tell(self, event: ProcEvent) -> None:
        if self.listening:
            self.events.append(event)

    def _stats(self, process: Process, thread: Thread, *, is_last: bool) -> ThreadStats:
        return ThreadStats(
            tid=thread.tid,
            tgid=process.pid if self.tells_process else 0,
            uid=process.uid,
            gid=0,
            parent=process.parent,
            comm="c",
            cpu_ns=thread.cpu_ns,
            read_bytes=thread.read_bytes,
            write_bytes=0,
            cancelled_bytes=0,
            device=0,
            inode=0,
            is_last=is_last if self.tells_process else None,
        )

    def _meanwhile(self) -> None:
        for _ in range(self.random.randrange(self.steps_a_call + 1)):
            self.step(exec_too=False)

    # ------------------------------------------------------------------ what is asked

    def listen(self) -> None:
        self.listening = True

    def ended(self) -> tuple[list[ThreadStats], int]:
        self._meanwhile()
        found, self.records = self.records, []
        return found, 0

    def drain(self) -> tuple[list[ProcEvent], int]:
        self._meanwhile()
        found, self.events = self.events, []
        return found, 0

    def of(self, tids: object) -> dict[int, ThreadStats]:
        found = {}
        for tid in list(tids):  # type: ignore[call-overload]
            self._meanwhile()
            for process in self.processes.values():
                if tid in process.threads:
                    found[tid] = self._stats(process, process.threads[tid], is_last=False)
        return found

    def pids(self) -> list[int]:
        self._meanwhile()
        return list(self.processes)

    def stat(self, pid: int, tid: int = 0) -> Stat | None:
        self._meanwhile()
        process = self.processes.get(pid)
        if process is None or (tid or pid) not in process.threads:
            return None
        is_ended = process.threads[tid or pid].is_ended
        state, flags = ("Z", PF_EXITING) if is_ended else ("R", 0)
        return Stat("c", state, flags, len(process.threads), process.start_ns, 0, 0)

    def threads(self, pid: int) -> list[int]:
        self._meanwhile()
        process = self.processes.get(pid)
        return [] if process is None else list(process.threads)

    def identity(self, pid: int, _stat: Stat, _inherited: Identity | None = None) -> Identity:
        process = self.processes.get(pid)
        return Identity(uid=process.uid if process else 0, comm="c")

    def after_exec(self, pid: int, inherited: Identity) -> Identity:
        process = self.processes.get(pid)
        return inherited if process is None else Identity(uid=process.uid, comm="c")

    def forget_cgroups(self) -> None:
        pass

    def close(self) -> None:
        pass
