# SPDX-License-Identifier: Apache-2.0
"""What the service manager is told of the daemon: that it is ready, that it gets on, how it is."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon import status_reasons
from licagent.observability.progress import Progress
from licagent.observability.systemd import Notifier, watchdog_interval_s

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

_log: Final = logging.getLogger(__name__)

_STATUS_S: Final = 5.0
_WITHIN_S: Final = 60.0
"""Longer than the longest step of the kernel thread: a policy of 100,000 bindings takes seconds."""

OnThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class LifeSigns:
    """Feeds the watchdog while every job gets on, and keeps one line of status up to date."""

    def __init__(self, notifier: Notifier) -> None:
        self.progress = Progress()
        self._notifier = notifier
        self._said = ""
        self._complained: frozenset[str] = frozenset()

    def expect(self, job: str, every_s: float = 0.0) -> Callable[[], None]:
        """A job that comes round every `every_s` when all is well; what to call each time."""
        return self.progress.expect(job, _WITHIN_S + 2 * every_s)

    def ready(self, agent: Agent) -> None:
        """The start, or a reload, is complete. On the thread that changes the kernel."""
        self._said = summary(agent)
        self._notifier.ready(self._said)

    async def tell_status(self, agent: Agent, on_kernel: OnThread) -> None:
        """Keep the status line as the agent is. Never returns."""
        made = self.expect("status", _STATUS_S)
        while True:
            await asyncio.sleep(_STATUS_S)
            line = await on_kernel(lambda: summary(agent))
            made()
            if line != self._said:
                self._said = line
                self._notifier.status(line)

    async def feed_watchdog(self, on_kernel: OnThread) -> None:
        """Tell the service manager that all get on, as often as it asks. Never returns.

        Once one is overdue it is told no more, and ends the daemon when its patience does: a
        new one takes over what is in the kernel without a gap.
        """
        interval_s = watchdog_interval_s(os.environ)
        if interval_s is None:
            await asyncio.Event().wait()
            return
        made = self.expect("kernel thread", interval_s)
        while True:
            await on_kernel(lambda: None)
            made()
            stalled = self.progress.stalled()
            if stalled:
                self._complain(stalled)
            else:
                self._complained = frozenset()
                self._notifier.watchdog()
            await asyncio.sleep(interval_s / 2)

    def _complain(self, stalled: tuple[tuple[str, float], ...]) -> None:
        words = ", ".join(f"{job} for {since_s:.0f} s" for job, since_s in stalled)
        if self._complained != frozenset(job for job, _ in stalled):
            self._complained = frozenset(job for job, _ in stalled)
            _log.error("no progress, the watchdog is not fed: %s", words)
        self._notifier.status(f"no progress: {words}")


def summary(agent: Agent) -> str:
    """One line: what the host does, and the first thing that is wrong with it."""
    kernel = agent.kernel
    mode = "enforcing" if agent.config.mode == "enforce" else "observing"
    line = f"{mode}, policy generation {kernel.control.generation}"
    reasons = status_reasons.reasons_of(agent, kernel.hooks())
    if (agent.glass.left_s() or 0) > 0:
        line = f"open by break-glass until {(agent.glass.opening or {}).get('until')}, {line}"
    if not reasons:
        return line
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"degraded: {reasons[0]['message']}{more}; {line}"
