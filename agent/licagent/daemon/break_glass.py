# SPDX-License-Identifier: Apache-2.0
"""Break-glass: the host is open for a bounded time, on the record. On the kernel thread only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon.decisions import boottime_to_unix, rfc3339
from licagent.host import posture
from licagent.store.errors import DocumentDamaged

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "break-glass"
_SCHEMA: Final = "licagent.break-glass/1"


class BreakGlass:
    """Opens the host, and closes it again."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.opening: dict[str, Any] | None = None
        """Until when the host is open, why and by whom; None while it is closed."""

    def open(self, for_s: int, reason: str, by: str) -> dict[str, Any]:
        """Open the host for a bounded time. The kernel itself closes it."""
        agent = self._agent
        until_ns = posture.boottime_ns() + for_s * 1_000_000_000
        glass = {
            "until": rfc3339(boottime_to_unix(until_ns)),
            "until_boottime_ns": until_ns,
            "boot_id": posture.boot_id(),
            "reason": reason,
            "by": by,
        }
        # On the record first: the host must never be open without it.
        agent.state.write_document(_DOCUMENT, _SCHEMA, glass)
        agent.emit(
            "break-glass",
            f"the host is open until {glass['until']}, by {by}: {reason}",
            until=glass["until"],
            reason_text=reason,
            by=by,
        )
        agent.log.sync()
        agent.kernel.control.break_glass_until_ns = until_ns
        self.opening = glass
        return glass

    def end(self, by: str) -> bool:
        """Close the host again; False if it was not open."""
        agent = self._agent
        if self.opening is None:
            return False
        # The record first: a crash in between leaves a host that the next start closes.
        agent.state.delete_document(_DOCUMENT)
        agent.kernel.control.break_glass_until_ns = 0
        self.opening = None
        agent.emit("break-glass", f"the host is closed again, by {by}", by=by)
        agent.cut()
        return True

    def left_s(self) -> float | None:
        """Seconds until break-glass ends; None when the host is closed."""
        if self.opening is None:
            return None
        return (int(self.opening["until_boottime_ns"]) - posture.boottime_ns()) / 1e9

    def restore(self) -> None:
        """At start: what is on record goes on, if it is not over."""
        agent = self._agent
        try:
            glass = agent.state.read_document(_DOCUMENT, _SCHEMA)
        except DocumentDamaged as error:
            _log.error("%s", error)
            glass = None
        if glass is None:
            # Open without a record (an edit of the table): closed.
            agent.kernel.control.break_glass_until_ns = 0
            return
        self.opening = glass
        if glass["boot_id"] != posture.boot_id() or (self.left_s() or 0) <= 0:
            self.end("time")
            return
        # The maps may be new, and a crash may have come before the word was written.
        agent.kernel.control.break_glass_until_ns = int(glass["until_boottime_ns"])
