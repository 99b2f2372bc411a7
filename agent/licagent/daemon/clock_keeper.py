# SPDX-License-Identifier: Apache-2.0
"""Trusted time in the daemon: read, watched, and kept so that a reboot gains nothing."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from licagent.domain.clock import ClockChange, Reading, TrustedClock
from licagent.host import posture
from licagent.store.clockstate import ClockStore
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

_log: Final = logging.getLogger(__name__)


class ClockKeeper:
    """Holds the trusted clock, and its record on the disk."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._store = ClockStore(agent.state)
        self.clock = self._load()

    def reading(self) -> Reading:
        """The clocks now."""
        sync = self._agent.sync_watch.clock_sync()
        return Reading(
            wall_ns=time.time_ns(),
            boottime_ns=posture.boottime_ns(),
            boot_id=posture.boot_id(),
            synchronized=bool(sync and sync.synchronised),
        )

    def watch(self) -> None:
        """Take a reading; a clock that moved ahead moves the kernel's deadlines."""
        agent = self._agent
        change = self.clock.observe(self.reading())
        if change & ClockChange.ADVANCED:
            agent.emit("clock", "trusted time moved ahead; license ends were set again")
            agent.write_licenses()
            agent.cut()  # what ended by that
            # At once: the next saving is up to a minute away, and a kill would undo the step.
            self._store.save(self.clock.state)

    def save(self) -> None:
        """Make trusted time durable, so that a reboot gains nothing."""
        if self._agent.kernel_side is not None:
            self.watch()  # a step must not go by unnoticed
        else:
            self.clock.observe(self.reading())
        self._store.save(self.clock.state)

    def _load(self) -> TrustedClock:
        try:
            known = self._store.load()
        except StoreError as error:
            _log.error("the clock's record is lost, the wall clock is believed: %s", error)
            known = None
        return TrustedClock(self.reading(), known)
