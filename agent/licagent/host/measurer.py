# SPDX-License-Identifier: Apache-2.0
"""Measures executables on a thread of its own, so that nothing waits for a file.

Others than root decide how large a file is, how often it changes and how many of them there are.
So: one thread; owners take turns (licagent.host.lanes); what others than root can write gets half
of one CPU at most; every queue has an end. What finds no room, or whose process has ended, is
looked for again in folders.

What comes out is only (version of a file, digest). It holds whatever policy is in force by then
and whatever the process does by then; whoever takes it looks both up.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.host.digests import FRESH_NS, DigestCache, Found, Measured, check_file
from licagent.host.exec_paths import candidates
from licagent.host.executables import FileIdentity, NoSuchExecutable
from licagent.host.hashing import NotMeasured
from licagent.host.hostroot import as_host_sees
from licagent.host.lanes import LARGE_BYTES, Job, Lanes, Started
from licagent.host.processes import executable_of

_log: Final = logging.getLogger(__name__)

ASKED_MAX: Final = 1024
OUTCOMES_MAX: Final = 1024
_LATER_MAX: Final = 1024
_FOLDERS_MAX: Final = 256
_AHEAD_MAX: Final = 32
"""Jobs of folders or of a policy that wait at a time; the rest stays a list of names."""
_AT_ONCE: Final = 64
_FIRST_AGAIN_S: Final = FRESH_NS / 1e9 + 0.005
_LAST_AGAIN_S: Final = 5.0
_LOOK_AGAIN_S: Final = 2.0
_END_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A version of a file, and what it holds."""

    identity: FileIdentity
    sha256: str  # lower-case hex
    waiters: tuple[Started, ...]
    is_for_all: bool  # others may run it than the waiters


class _Named:
    """Paths that a policy names, to be measured before it is in force."""

    def __init__(self, paths: Iterable[str], *, also_others: bool) -> None:
        self.paths: Iterator[str] = iter(paths)
        self.also_others = also_others
        self.is_read = False
        self.done = threading.Event()


class Measurer:
    """One thread that measures. Construct, `start`, then `stop`. Methods are for any thread."""

    def __init__(self, digests: DigestCache, tell: Callable[[], None]) -> None:
        """`tell` is called, on the thread, when there is something to `take`."""
        self._digests = digests
        self._tell = tell
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False
        # Under the lock of `_wake`:
        self._asked: deque[Started] = deque()
        self._outcomes: deque[Outcome] = deque()
        self._next_named: _Named | None = None
        self._resting = True
        self._scan_wanted = False
        # The thread's own:
        self._lanes = Lanes()
        self._jobs: dict[FileIdentity, Job] = {}
        self._later: list[tuple[float, int, Started, int]] = []
        self._numbers = itertools.count()
        self._named: _Named | None = None
        self._scan: Iterator[str] | None = None
        self._next_scan_s = 0.0
        self._missed = False  # a program ended, or found no room, before it was measured
        self._folders: dict[str, None] = {}  # where measured programs stood
        self._others_again_s = 0.0
        self.failure: BaseException | None = None
        """Why the thread has ended by itself, a fault of ours."""

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="measure", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the chunk that is being read. A disk that hangs holds nobody up for long."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(_END_S)

    def ask(self, started: Started) -> None:
        """Measure what a process began to run; without end if nobody does it in time."""
        with self._wake:
            if len(self._asked) < ASKED_MAX:
                self._asked.append(started)
            else:
                self._missed = True
            self._resting = False
            self._wake.notify_all()

    def measure_named(
        self,
        paths: Iterable[str],
        *,
        also_others: bool,
        wait_s: float,
        meanwhile: Callable[[], None],
    ) -> bool:
        """Measure these before all else, and wait for that: whether all was done in time.

        Waits for what root alone can write; for other files only with `also_others`. The rest is
        measured all the same. `meanwhile` is called now and then, to take outcomes.
        """
        named = _Named(paths, also_others=also_others)
        with self._wake:
            if self._thread is None or self._stopped:
                return False
            if self._next_named is not None:
                self._next_named.done.set()
            self._next_named = named
            self._resting = False
            self._wake.notify_all()
        end_s = time.monotonic() + wait_s
        while not named.done.wait(min(0.02, max(end_s - time.monotonic(), 0))):
            meanwhile()
            if time.monotonic() >= end_s:
                named.done.set()  # what is left of it goes before others' files no more
                return False
        return True

    def scan(self) -> None:
        """Measure what runs and what is installed, once, when nothing else is to do."""
        with self._wake:
            self._scan_wanted = True
            self._resting = False
            self._wake.notify_all()

    def rest(self) -> None:
        """Drop whatever waits: no selector is a digest any more."""
        with self._wake:
            self._resting = True
            self._scan_wanted = False
            self._asked.clear()
            self._wake.notify_all()

    def take(self, most: int = 256) -> list[Outcome]:
        """What was measured since."""
        with self._wake:
            taken = [self._outcomes.popleft() for _ in range(min(most, len(self._outcomes)))]
            if taken:
                self._wake.notify_all()
        return taken

    @property
    def has_outcomes(self) -> bool:
        """Whether there is something to take."""
        return bool(self._outcomes)

    # --- the thread

    def _run(self) -> None:
        try:
            while self._is_to_go_on():
                try:
                    self._turn()
                except OSError as error:  # no descriptors are left, for instance
                    _log.error("executables are not measured for a moment: %s", error)
                    self._drop_all()
                    self._missed = True
        except BaseException as error:  # noqa: BLE001 - told by whoever watches `failure`
            self.failure = error
        finally:
            self._drop_all()
            self._save()
            self._tell()

    def _is_to_go_on(self) -> bool:
        """Wait until there is something to do; False at the end."""
        with self._wake:
            while not self._stopped:
                if self._resting:
                    self._drop_all()
                    self._wake.wait()
                elif len(self._outcomes) >= OUTCOMES_MAX:
                    self._wake.wait()
                else:
                    wait_s = self._idle_s()
                    if wait_s is None or wait_s > 0:
                        self._wake.wait(wait_s)
                        wait_s = self._idle_s()
                    if wait_s is not None and wait_s <= 0:
                        return True
        return False

    def _idle_s(self) -> float | None:
        """Seconds until there is something to do; None: when somebody asks."""
        if self._asked or self._next_named or self._scan_wanted or self._may_read_ahead():
            return 0.0
        now_s = time.monotonic()
        times = [self._later[0][0]] if self._later else []
        if self._lanes:
            times.append(0.0 if self._lanes.has_roots else self._others_again_s)
        if self._missed and self._scan is None:
            times.append(self._next_scan_s)
        return min(times) - now_s if times else None

    def _may_read_ahead(self) -> bool:
        named = self._named is not None and not self._named.is_read
        return (named or self._scan is not None) and len(self._lanes) < _AHEAD_MAX

    def _turn(self) -> None:
        """Some of those who ask, some names of the lists, and one slice of one file."""
        self._take_orders()
        for _ in range(_AT_ONCE):
            try:
                started = self._asked.popleft()
            except IndexError:
                break
            self._begin_process(started, 0)
        while self._later and self._later[0][0] <= time.monotonic():
            _due, _number, started, tries = heapq.heappop(self._later)
            self._begin_process(started, tries)
        self._look_again()
        for _ in range(_AT_ONCE):
            if not self._may_read_ahead():
                break
            self._read_ahead()
        self._read_slice()

    def _take_orders(self) -> None:
        with self._wake:
            named, self._next_named = self._next_named, None
            scan, self._scan_wanted = self._scan_wanted, False
        if named is not None:
            if self._named is not None:
                self._named.done.set()
            for job in self._jobs.values():
                job.is_waited_for = False
            self._named = named
        if scan:
            self._begin_scan()

    def _begin_scan(self) -> None:
        self._missed = False
        self._next_scan_s = time.monotonic() + _LOOK_AGAIN_S
        self._scan = (each.open_path for each in candidates(self._folders))

    def _look_again(self) -> None:
        """Programs that run too briefly to be measured as they do are looked for in folders."""
        if self._missed and self._scan is None and time.monotonic() >= self._next_scan_s:
            self._begin_scan()

    # --- what is to be measured

    def _begin_process(self, started: Started, tries: int) -> None:
        path = f"/proc/{started.pid}/exe"
        try:
            found = self._digests.find(path)
        except NotMeasured:
            return
        except (NoSuchExecutable, OSError):
            self._missed = True
            return
        name, _ = executable_of(started.pid)
        if name is not None and len(self._folders) < _FOLDERS_MAX:
            self._folders[str(Path(name).parent)] = None
        self._begin(found, (started, tries))

    def _read_ahead(self) -> None:
        """The next name of each list."""
        if self._named is not None and not self._named.is_read:
            path = next(self._named.paths, None)
            if path is None:
                self._named.is_read = True
            else:
                self._begin_path(as_host_sees(path), self._named)
            self._settle_named()
        if self._scan is not None:
            path = next(self._scan, None)
            if path is None:
                self._scan = None
                self._save()
            else:
                self._begin_path(path, None)

    def _begin_path(self, path: str, named: _Named | None) -> None:
        try:
            found = self._digests.find(path)
        except (NoSuchExecutable, NotMeasured, OSError):
            return
        identity = found.identity
        is_waited_for = named is not None and (named.also_others or found.is_roots)
        self._begin(found, None)
        job = self._jobs.get(identity)
        if job is not None and is_waited_for:
            job.is_waited_for = True

    def _begin(self, found: Found, waiter: tuple[Started, int] | None) -> None:
        """Put a file into its lane, unless it is known or waits already."""
        known = self._digests.known(found)
        if known is not None:
            found.close()
            if waiter is not None:  # the kernel was told of it, but the process ran before
                self._tell_outcome(known, [waiter], is_for_all=False)
            return
        job = self._jobs.get(found.identity)
        if job is not None:
            found.close()
            job.add(waiter)
            return
        try:
            check_file(found)
        except NotMeasured as error:
            found.close()
            if error.retry and waiter is not None:
                self._put_off(waiter)
            return
        job = Job(found)
        job.add(waiter)
        self._jobs[found.identity] = job
        dropped = self._lanes.put(job)
        if dropped is not None:
            self._missed = True
            self._end(dropped)

    def _put_off(self, waiter: tuple[Started, int]) -> None:
        started, tries = waiter
        if len(self._later) >= _LATER_MAX:
            self._missed = True
            return
        due_s = time.monotonic() + min(_FIRST_AGAIN_S * 2.0 ** min(tries, 10), _LAST_AGAIN_S)
        heapq.heappush(self._later, (due_s, next(self._numbers), started, tries + 1))

    # --- measuring

    def _read_slice(self) -> None:
        for held in list(self._lanes.begun()):
            if held.reading is not None and held.reading.is_wanted_by_a_writer():
                self._give_up(held, retry=True)
        begun_s = time.monotonic()
        job = self._lanes.next(roots_only=self._are_roots_first(begun_s))
        if job is None:
            return
        try:
            self._digests.check_unchanged(job.found)
            if job.reading is None:
                job.reading = self._digests.begin(job.found)
            if job.reading.step(LARGE_BYTES):
                measured = self._digests.finish(job.found, job.reading)
                self._lanes.remove(job)
                self._end(job)
                self._tell_outcome(measured, job.waiters, is_for_all=job.is_for_all)
        except NotMeasured as error:
            self._give_up(job, retry=error.retry)
        except (NoSuchExecutable, OSError):
            self._give_up(job, retry=False)
        if not job.found.is_roots:
            now_s = time.monotonic()
            self._others_again_s = now_s + (now_s - begun_s)

    def _are_roots_first(self, now_s: float) -> bool:
        """Others' files have had their half, or a policy waits for root's."""
        named = self._named
        is_waiting = named is not None and not named.also_others and not named.done.is_set()
        return now_s < self._others_again_s or (is_waiting and self._lanes.has_roots)

    def _give_up(self, job: Job, *, retry: bool) -> None:
        self._lanes.remove(job)
        self._end(job)
        if retry:
            for waiter in job.waiters:
                self._put_off(waiter)

    def _end(self, job: Job) -> None:
        """A job that is in no lane any more."""
        job.close()
        self._jobs.pop(job.found.identity, None)
        self._settle_named()

    def _settle_named(self) -> None:
        named = self._named
        if named is None or not named.is_read:
            return
        if not any(job.is_waited_for for job in self._jobs.values()):
            named.done.set()
            self._named = None

    def _tell_outcome(
        self, measured: Measured, waiters: Iterable[tuple[Started, int]], *, is_for_all: bool
    ) -> None:
        outcome = Outcome(
            measured.identity,
            measured.sha256,
            tuple(started for started, _tries in waiters),
            is_for_all,
        )
        with self._wake:
            self._outcomes.append(outcome)
        self._tell()

    def _drop_all(self) -> None:
        for job in list(self._jobs.values()):
            job.close()
        self._jobs.clear()
        self._lanes = Lanes()
        self._later.clear()
        self._scan = None
        self._missed = False
        for named in (self._named, self._next_named):
            if named is not None:
                named.done.set()
        self._named = self._next_named = None

    def _save(self) -> None:
        try:
            self._digests.save()
        except OSError as error:
            _log.warning("the digests of executables cannot be kept for the next start: %s", error)
