# SPDX-License-Identifier: Apache-2.0
"""Keeps the tc program on every interface of the host, on a thread of its own.

Attaching waits for the kernel, about 10 ms an interface, so it goes on beside everything else: a
policy waits for it for a moment only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Final

from licagent.kernel.interfaces import Coverage, InterfaceLinks

_log: Final = logging.getLogger(__name__)

_WAIT_S: Final = 1.0
"""Enough for some fifty new interfaces."""


class InterfaceKeeper:
    """Rounds through the network namespaces. `everywhere` runs an action in each of them."""

    def __init__(
        self, links: InterfaceLinks, everywhere: Callable[[Callable[[], None]], None]
    ) -> None:
        self._links = links
        self._everywhere = everywhere
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="interfaces")
        self._stopped = threading.Event()
        self._found: Coverage | None = None

    def begin(self) -> Future[None]:
        """Begin a round, after the one that is under way."""
        try:
            return self._thread.submit(self._round)
        except RuntimeError:  # closed
            done: Future[None] = Future()
            done.set_result(None)
            return done

    def await_round(self, round_: Future[None]) -> None:
        """Wait until a round has ended, for a second at most; it goes on by itself."""
        try:
            round_.result(_WAIT_S)
        except FutureTimeout:
            _log.warning("interfaces are still being covered: packet sockets may pass until then")
        except OSError as error:
            _log.error("interfaces cannot be covered: %s", error)

    def state(self) -> tuple[int | None, bool, str]:
        """The program's id, whether it is on some interface, and what is wrong with the rest.

        Interfaces come and go between two rounds: what is not as the last one left it is put
        right first.
        """
        found = self._found
        if found is None or found.failed or self._links.is_broken(found):
            self.await_round(self.begin())
        found = self._found
        program_id = self._links.program_id()
        if program_id is None:
            return None, False, "detached by somebody else"
        if found is None:
            return program_id, False, "interfaces are still being covered"
        return program_id, any(found.covered.values()), found.error

    def close(self) -> None:
        """End the round under way and begin no other. The links stay."""
        self._stopped.set()
        self._thread.shutdown()

    def _round(self) -> None:
        if self._stopped.is_set():
            return
        found = Coverage()
        self._everywhere(lambda: self._links.cover(found, self._stopped.is_set))
        if not self._stopped.is_set():
            self._links.settle(found)
            self._found = found
