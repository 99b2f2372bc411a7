# SPDX-License-Identifier: Apache-2.0
"""What the ways to sample a host without programs in the kernel have in common.

Best first: `TaskstatsSource` counts every thread, also those that live and die between two
samples. `PsutilSource` is what is left where taskstats are not to be had (another pid or network
namespace, no CAP_NET_ADMIN, no CONFIG_TASKSTATS): it sees only what lives at a sample.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Mapping
from typing import Protocol

from licagent.domain.usage import Meter, Quality
from licagent.metering.fallback.identity import Identity


class Source(Protocol):
    """Fills a tally."""

    name: str
    lost: int
    """How often the kernel dropped records, since the beginning."""

    @property
    def quality(self) -> Mapping[Meter, Quality]:
        """How far each meter may be trusted."""

    def begin(self, *, resumed: bool) -> None:
        """First sample. Without a baseline what living threads used so far does not count."""

    def drain(self) -> None:
        """Take in what the kernel told since the last call."""

    def collect(self) -> None:
        """Sample everything that lives."""

    def executable_of(self, identity: Identity) -> str:
        """Path of an executable that is known by its inode only; "" if it is not."""

    def close(self) -> None:
        """Stop."""


class Drainer:
    """A thread that empties a source's sockets before they are full."""

    def __init__(self, source: Source, lock: threading.Lock, every_s: float = 0.05) -> None:
        """`lock` is held while it works on the source."""
        self._source = source
        self._lock = lock
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every_s):
                with self._lock:
                    self._source.drain()
        except Exception:  # noqa: BLE001 - whatever it is, nobody would empty the sockets
            traceback.print_exc()
            os._exit(1)  # the daemon starts another, and marks the interval

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
