# SPDX-License-Identifier: Apache-2.0
"""Whose hand was on the kernel side: what the guard refused, and what was changed all the same.

Where BPF is among the kernel's security modules, other processes are refused what would take
enforcement away (bpf/guard.bpf.c). Where it is not, root may do it; then it is seen here within
seconds: in the events and in `status`, and with a control plane in the host's next report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from licagent.kernel.numbers import Guarded

if TYPE_CHECKING:
    from licagent.daemon.kernel_side import HookReport, KernelSide
    from licagent.kernel.enforcement_structs import Event

_log: Final = logging.getLogger(__name__)

KIND: Final = "tampering"
"""Of the events that this makes."""

_REFUSED: Final = {
    Guarded.LINK: "detaching or replacing a program of licagent",
    Guarded.MAP: "writing a table of licagent",
    Guarded.FOLDER: "removing or moving a pin of licagent",
    Guarded.MOUNT: "unmounting the BPF file system with licagent's pins",
    Guarded.PROCESS: "taking over the daemon's memory or descriptors",
    Guarded.PROGRAM: "replacing a function of a program of licagent",
}

_REPLACED: Final = "has another program: it was replaced by somebody else"

Attached = dict[str, tuple[int | None, int | None]]


class KernelWatch:
    """Compares what is attached with what this daemon started with. On the kernel thread."""

    def __init__(self, emit: Callable[..., None]) -> None:
        """`emit` takes kind, message and fields of an event (`Agent.emit`)."""
        self._emit = emit
        self._kernel: KernelSide | None = None
        self._wanted: Attached = {}
        self._changed: dict[str, str] = {}
        self.refusals = 0
        """Tries of others that were refused, since the daemon started."""
        self.is_locked = False
        """Whether others are refused what would take enforcement away."""

    @property
    def replaced(self) -> tuple[str, ...]:
        """Programs in whose place others stand, for people; `status` itself sees what is gone."""
        return tuple(words for words in self._changed.values() if words.endswith(_REPLACED))

    def begin(self, kernel: KernelSide) -> None:
        """Everything is pinned: it is this daemon's from now on."""
        self._kernel = kernel
        self._wanted = _attached(kernel.hooks())
        self._lock()

    def end(self) -> None:
        """What is detached from now on is detached by this daemon."""
        self._kernel = None

    def check(self) -> None:
        """Compare, and tell once of each change. Some 30 descriptors, below a millisecond."""
        if self._kernel is None:
            return
        self._lock()  # interfaces that came since have links of their own
        if untold := self._untold():
            self._emit(KIND, f"{untold} more attempts on what is licagent's were refused")
        found = _attached(self._kernel.hooks())
        changed = {}
        for name, (link_id, program_id) in self._wanted.items():
            if name not in found:
                changed[name] = f"{name} was detached by somebody else"
            elif found[name] != (link_id, program_id):
                changed[name] = f"{name} {_REPLACED}"
        for name, words in changed.items():
            if self._changed.get(name) != words:
                _log.error("%s", words)
                self._emit(KIND, words, hook=name)
        for name in self._changed.keys() - changed.keys():
            self._emit(KIND, f"{name} is as it was again", hook=name)
        self._changed = changed

    def refused(self, event: Event) -> None:
        """Tell of what the guard refused."""
        self.refusals += event.count
        who = event.comm.decode(errors="replace")
        what = _REFUSED.get(Guarded(event.rule), "changing what is licagent's")
        times = f", {event.count} times" if event.count > 1 else ""
        self._emit(
            KIND,
            f"{who} (process {event.pid}, uid {event.uid}) was refused {what}{times}",
            by=f"uid {event.uid}",
            pid=event.pid,
            name=who,
        )

    def _untold(self) -> int:
        return self._kernel.guard.take_refused() if self._kernel and self.is_locked else 0

    def _lock(self) -> None:
        if self._kernel is None:
            return
        try:
            self.is_locked = self._kernel.guard.lock()
        except OSError as error:
            self.is_locked = False
            _log.error("the kernel side cannot be guarded: %s", error)


def _attached(hooks: Sequence[HookReport]) -> Attached:
    return {
        hook.name: (hook.link_id, hook.program_id)
        for hook in hooks
        if hook.attached and hook.link_id is not None
    }
