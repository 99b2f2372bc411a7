# SPDX-License-Identifier: Apache-2.0
"""Who in the daemon must get on, and who has not: what the watchdog is fed by."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

_clock: Final = time.monotonic


class Progress:
    """Jobs, each with the longest time between two signs that it gets on. For any thread.

    A job that fails and tries again gets on: starting the daemon anew would not help it. One that
    waits for ever for what should answer does not.
    """

    def __init__(self, clock: Callable[[], float] = _clock) -> None:
        """`clock`: seconds of a clock that does not go while the host sleeps."""
        self._clock = clock
        self._within_s: dict[str, float] = {}
        self._made_at_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def expect(self, job: str, within_s: float) -> Callable[[], None]:
        """A job that must give a sign every `within_s`, from now on; what gives the sign."""
        with self._lock:
            self._within_s[job] = within_s
            self._made_at_s[job] = self._clock()
        return lambda: self.made(job)

    def made(self, job: str) -> None:
        """The job has got on. KeyError for one that nobody expects."""
        with self._lock:
            if job not in self._within_s:
                raise KeyError(job)
            self._made_at_s[job] = self._clock()

    def stalled(self) -> tuple[tuple[str, float], ...]:
        """Jobs that are overdue, and how long ago in seconds each got on last."""
        now_s = self._clock()
        with self._lock:
            return tuple(
                (job, now_s - at_s)
                for job, at_s in self._made_at_s.items()
                if now_s - at_s > self._within_s[job]
            )
