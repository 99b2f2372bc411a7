# SPDX-License-Identifier: Apache-2.0
"""What waits to be measured, and the next step of it. For the one thread that measures."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from licagent.host.digests import DigestCache, Measured
from licagent.host.exec_paths import ANY_EXECUTE
from licagent.host.exec_search import ExecSearch
from licagent.host.executables import FileIdentity, NoSuchExecutable
from licagent.host.hashing import NotMeasured
from licagent.host.hostroot import as_host_sees
from licagent.host.lanes import LARGE_BYTES, Job, Lanes, Started
from licagent.host.measurable import FRESH_NS, Found, check_file
from licagent.host.processes import executable_of

_log: Final = logging.getLogger(__name__)

_LATER_MAX: Final = 1024
_AHEAD_MAX: Final = 32
"""Root's files that wait while lists are looked through; the rest stays a list of names."""
_AT_ONCE: Final = 64
_FIRST_AGAIN_S: Final = FRESH_NS / 1e9 + 0.005
_LAST_AGAIN_S: Final = 5.0
_COMPLAIN_AGAIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A version of a file, and what it holds."""

    identity: FileIdentity
    sha256: str  # lower-case hex
    waiters: tuple[Started, ...]
    is_for_all: bool  # others may run it than the waiters


class Named:
    """Paths that a policy names, to be measured before it is in force."""

    def __init__(self, paths: Iterable[str], *, also_others: bool) -> None:
        """`also_others`: to be waited for is also what others than root can write."""
        self.paths: Iterator[str] = iter(paths)
        self.also_others = also_others
        self.is_read = False
        self.done = threading.Event()


class Measuring:
    """Files in their lanes, processes to come back to, and lists to look through."""

    def __init__(self, digests: DigestCache, tell: Callable[[Outcome], None]) -> None:
        """`tell` takes what was measured."""
        self._digests = digests
        self._tell = tell
        self._lanes = Lanes()
        self._jobs: dict[FileIdentity, Job] = {}
        self._later: list[tuple[float, int, Started, int]] = []
        self._numbers = itertools.count()
        self._named: Named | None = None
        self._search = ExecSearch(self.complain)
        self._complain_again_s = 0.0
        self._others_again_s = 0.0
        self.missed = False
        """A program ended, or found no room, before it was measured."""
        self.is_to_be_saved = False
        """A look through all was completed."""

    def drop_all(self) -> None:
        """Forget whatever waits."""
        for job in list(self._jobs.values()):
            job.close()
        self._jobs.clear()
        self._lanes = Lanes()
        self._later.clear()
        self._search.stop()
        self.missed = False
        if self._named is not None:
            self._named.done.set()
            self._named = None

    def complain(self, what: str, error: BaseException) -> None:
        """Log a fault of ours that a name has brought about; not each one, others choose names."""
        if time.monotonic() >= self._complain_again_s:
            self._complain_again_s = time.monotonic() + _COMPLAIN_AGAIN_S
            _log.error("%a was not measured", what, exc_info=error)

    def idle_s(self) -> float | None:
        """Seconds until there is something to do, 0 or less for now; None: nothing waits."""
        now_s = time.monotonic()
        if self._may_read_ahead(now_s):
            return 0.0
        times = [self._later[0][0]] if self._later else []
        if self._lanes:
            times.append(now_s if self._lanes.roots else self._others_again_s)
        if self.missed and not self._search.is_on:
            times.append(self._search.next_begin_s)
        if self._search.is_on and self._has_room:
            times.append(self._search.next_name_s)
        return min(times) - now_s if times else None

    def turn(self) -> None:
        """Whoever is to be asked for again, some names of the lists, and one slice of one file."""
        while self._later and self._later[0][0] <= time.monotonic():
            _due, _number, started, tries = heapq.heappop(self._later)
            self.begin_process(started, tries)
        # Programs that run too briefly to be measured as they do are looked for in folders.
        if self.missed and self._search.may_begin(time.monotonic()):
            self.begin_scan()
        for _ in range(_AT_ONCE):
            if not self._may_read_ahead(time.monotonic()):
                break
            self.let_writers_in()
            self._read_ahead()
        self._read_slice()

    # --- what is to be measured

    def begin_named(self, named: Named) -> None:
        """Measure these before all else; nobody waits for earlier ones any more."""
        if self._named is not None:
            self._named.done.set()
        for job in self._jobs.values():
            job.is_waited_for = False
        self._named = named

    def begin_scan(self) -> None:
        """Look through what runs and what is installed, from its beginning."""
        self.missed = False
        self._search.begin()

    @property
    def _has_room(self) -> bool:
        # However many of others': what finds no room in their lanes is looked for again.
        return self._lanes.roots < _AHEAD_MAX

    def _may_read_ahead(self, now_s: float) -> bool:
        named = self._named is not None and not self._named.is_read
        return (named or self._search.is_due(now_s)) and self._has_room

    def begin_process(self, started: Started, tries: int = 0) -> None:
        """Put what a process runs into its lane; `tries`: how often it was put off already."""
        path = f"/proc/{started.pid}/exe"
        try:
            with contextlib.closing(self._digests.files.find(path)) as found:
                found.name, _ = executable_of(started.pid)
                self._search.note_folder(found)
                self._begin(found, (started, tries))
        except NotMeasured:
            return
        except (NoSuchExecutable, OSError):
            self.missed = True
        except Exception as error:  # noqa: BLE001 - one name costs nothing but itself
            self.complain(path, error)

    def _read_ahead(self) -> None:
        """The next name of each list."""
        if self._named is not None and not self._named.is_read:
            path = next(self._named.paths, None)
            if path is None:
                self._named.is_read = True
            else:
                self._begin_path(as_host_sees(path), self._named)
            self._settle_named()
        if self._search.is_due(time.monotonic()):
            begun_s = time.thread_time()
            self._read_search()
            self._search.has_taken(time.thread_time() - begun_s)

    def _read_search(self) -> None:
        try:
            found = self._search.next()
        except StopIteration:
            self._search.stop()
            self.is_to_be_saved = True
        except Exception as error:  # noqa: BLE001 - the rest of it is looked through again
            self._search.stop()
            self.missed = True
            self.complain("what is looked for", error)
        else:
            if found is not None:
                self._begin_path(found.open_path, None)

    def _begin_path(self, path: str, named: Named | None) -> None:
        try:
            with contextlib.closing(self._digests.files.find(path)) as found:
                if named is None and not found.info.st_mode & ANY_EXECUTE:
                    return
                self._begin(found, None)
                job = self._jobs.get(found.identity)
                is_waited_for = named is not None and (named.also_others or found.is_roots)
                if job is not None and is_waited_for:
                    job.is_waited_for = True
        except (NoSuchExecutable, NotMeasured, OSError):
            return
        except Exception as error:  # noqa: BLE001 - one name costs nothing but itself
            self.complain(path, error)

    def _begin(self, found: Found, waiter: tuple[Started, int] | None) -> None:
        """Put a file into its lane, unless it is known or waits already.

        It is closed while it waits, for its filesystem to be unmounted by whoever wants to.
        """
        known = self._digests.known(found)
        if known is not None:
            if waiter is not None:  # the kernel was told of it, but the process ran before
                self._tell_outcome(known, [waiter], is_for_all=False)
            return
        job = self._jobs.get(found.identity)
        if job is not None:
            job.add(waiter)
            return
        try:
            check_file(found)
        except NotMeasured as error:
            if error.retry and waiter is not None:
                self._put_off(waiter)
            return
        job = Job(found)
        job.add(waiter)
        self._jobs[found.identity] = job
        dropped = self._lanes.put(job)
        if dropped is not None:
            self.missed = True
            self._end(dropped)

    def _put_off(self, waiter: tuple[Started, int]) -> None:
        started, tries = waiter
        if len(self._later) >= _LATER_MAX:
            self.missed = True
            return
        due_s = time.monotonic() + min(_FIRST_AGAIN_S * 2.0 ** min(tries, 10), _LAST_AGAIN_S)
        heapq.heappush(self._later, (due_s, next(self._numbers), started, tries + 1))

    # --- measuring

    def let_writers_in(self) -> bool:
        """Give up what somebody wants to write; whether anything is still held."""
        held = [job for job in self._lanes.begun() if job.reading is not None]
        for job in held:
            if job.reading is not None and job.reading.is_wanted_by_a_writer():
                self._give_up(job, retry=True)
        return bool(held)

    def _read_slice(self) -> None:
        self.let_writers_in()
        # Of this thread's own: on a busy host it waits for long, and that is no work.
        begun_s = time.thread_time()
        job = self._lanes.next(roots_only=self._are_roots_first(time.monotonic()))
        if job is None:
            return
        try:
            if job.reading is not None:
                self._digests.check_unchanged(job.found)
            else:
                self._digests.files.open_again(job.found)
                job.reading = self._digests.begin(job.found)
            if job.reading.step(LARGE_BYTES):
                measured = self._digests.finish(job.found, job.reading)
                self._lanes.remove(job)
                self._end(job)
                self._tell_outcome(measured, job.waiters, is_for_all=job.is_for_all)
        except NotMeasured as error:
            self._give_up(job, retry=error.retry)
        except (NoSuchExecutable, OSError):
            self.missed |= bool(job.waiters)  # looked for in folders
            self._give_up(job, retry=False)
        except Exception as error:  # noqa: BLE001 - one name costs nothing but itself
            self.complain(job.found.path, error)
            self._give_up(job, retry=False)
        if not job.found.is_roots:
            self._others_again_s = time.monotonic() + time.thread_time() - begun_s

    def _are_roots_first(self, now_s: float) -> bool:
        """Others' files have had their half, or a policy waits for root's."""
        named = self._named
        is_waiting = named is not None and not named.also_others and not named.done.is_set()
        return now_s < self._others_again_s or (is_waiting and self._lanes.roots > 0)

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
        waiting = tuple(started for started, _tries in waiters)
        self._tell(Outcome(measured.identity, measured.sha256, waiting, is_for_all))
