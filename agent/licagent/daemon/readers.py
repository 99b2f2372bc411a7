# SPDX-License-Identifier: Apache-2.0
"""Threads for those who only ask, so that what must not wait never waits for them.

Not asyncio's own pool: the control link saves leases and stages revocations there, and a few
clients that ask again and again would have all of its threads. Not an executor of
concurrent.futures either: the interpreter does not end before its threads have, and a daemon
that is told to stop would wait for the check of a whole ledger.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Readers:
    """Runs functions that change nothing, in the order in which they were asked for.

    A thread lives while there is something to run, so there is none to close. At the daemon's end
    what waits is cancelled with its task, and what runs ends with the process.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        """At most so many `threads` at once, of this name."""
        self._name = name
        self._threads = threads
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._working = 0

    async def __call__(self, action: Callable[[], T]) -> T:
        """The result of `action`; one that was cancelled before its turn never runs."""
        asked: Future[T] = Future()
        with self._lock:
            if self._working < self._threads:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
                self._working += 1
            self._waiting.append((asked, action))
        return await asyncio.wrap_future(asked)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._working -= 1
                    return
                asked, action = self._waiting.popleft()
            if not asked.set_running_or_notify_cancel():
                continue
            try:
                result = action()
            except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
                asked.set_exception(error)
            else:
                asked.set_result(result)
