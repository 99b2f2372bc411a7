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

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from licagent.host.digests import DigestCache
from licagent.host.lanes import Started
from licagent.host.measuring import Measuring, Named, Outcome

_log: Final = logging.getLogger(__name__)

ASKED_MAX: Final = 1024
OUTCOMES_MAX: Final = 1024
_ASKED_AT_ONCE: Final = 64
_END_S: Final = 5.0
_AFTER_FAULT_S: Final = 0.2
_WRITER_WAITS_S: Final = 0.05
"""The longest that whoever wants to write waits while this thread waits."""


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
        self._overflowed = False
        self._outcomes: deque[Outcome] = deque()
        self._next_named: Named | None = None
        self._resting = True
        self._scan_wanted = False
        # The thread's own:
        self._measuring = Measuring(digests, self._put_outcome)
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
        """Measure what a process began to run; where that finds no room, it is looked for later."""
        with self._wake:
            if len(self._asked) < ASKED_MAX:
                self._asked.append(started)
            else:
                self._overflowed = True
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
        named = Named(paths, also_others=also_others)
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
                except Exception as error:  # noqa: BLE001 - others decide what is looked at
                    # What waits is kept. No descriptors are left, for instance.
                    self._measuring.complain("for a moment, what waits", error)
                    self._measuring.missed = True
                    with self._wake:
                        if not self._stopped:
                            self._wake.wait(_AFTER_FAULT_S)
        except BaseException as error:  # noqa: BLE001 - told by whoever watches `failure`
            self.failure = error
        finally:
            with self._wake:
                self._stopped = True
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
                    continue
                wait_s = None if len(self._outcomes) >= OUTCOMES_MAX else self._idle_s()
                if wait_s is not None and wait_s <= 0:
                    return True
                if self._measuring.let_writers_in():
                    wait_s = min(_WRITER_WAITS_S, wait_s or _WRITER_WAITS_S)
                self._wake.wait(wait_s)
        return False

    def _idle_s(self) -> float | None:
        if self._asked or self._overflowed or self._next_named or self._scan_wanted:
            return 0.0
        return self._measuring.idle_s()

    def _turn(self) -> None:
        with self._wake:
            named, self._next_named = self._next_named, None
            scan, self._scan_wanted = self._scan_wanted, False
            overflowed, self._overflowed = self._overflowed, False
            asked = [self._asked.popleft() for _ in range(min(_ASKED_AT_ONCE, len(self._asked)))]
        if named is not None:
            self._measuring.begin_named(named)
        if scan:
            self._measuring.begin_scan()
        if overflowed:
            self._measuring.missed = True
        for started in asked:
            self._measuring.begin_process(started)
        self._measuring.turn()
        if self._measuring.is_to_be_saved:
            self._measuring.is_to_be_saved = False
            self._save()

    def _put_outcome(self, outcome: Outcome) -> None:
        with self._wake:
            self._outcomes.append(outcome)
        self._tell()

    def _drop_all(self) -> None:
        self._measuring.drop_all()
        named, self._next_named = self._next_named, None
        if named is not None:
            named.done.set()

    def _save(self) -> None:
        try:
            self._digests.save()
        except OSError as error:
            _log.warning("the digests of executables cannot be kept for the next start: %s", error)
