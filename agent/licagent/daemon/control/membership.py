# SPDX-License-Identifier: Apache-2.0
"""What this host is to its control plane: its labels and status, and the leases it has of it.

On the kernel thread only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from licagent.control.interface import Assignment, ControlState, HostStatus, NoticeCode
from licagent.domain.lease import NO_LEASES, LeaseSet

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

BY: Final = "control plane"

NAMED_MAX: Final = 20
"""Objects that an event names; it counts the others."""

_SENT_AWAY: Final = frozenset({NoticeCode.EVICTED, NoticeCode.BANNED})

_SUSPENDED: Final = frozenset({HostStatus.EVICTED, HostStatus.BANNED, HostStatus.CLONED})
"""In these a host has no leases, also for licenses that would go on without one."""


class ControlMembership:
    """The assignment and the leases in force, and their changes."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.leases: LeaseSet = NO_LEASES
        self.assignment: Assignment | None = None
        self._is_sent_away = False

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels in force: those of the assignment, or else of agent.toml."""
        found = self.assignment
        return self._agent.config.labels if found is None else found.labels

    def begin(self, assignment: Assignment | None, leases: LeaseSet) -> None:
        """Take what is in force from before; `apply_leases` follows when licenses are there."""
        self.assignment = assignment
        self._agent.licensing.set_labels(self.labels)
        self.leases = leases

    def set_leases(self, leases: LeaseSet) -> None:
        """Take the leases that there are now, and no others."""
        before, self.leases = self.leases, leases
        self._is_sent_away &= not leases.leases
        self.apply_leases(is_answer=leases.requested_boottime_ns > 0)
        self._agent.write_licenses()
        gone = sorted(before.leases.keys() - leases.leases.keys())
        new = sorted(leases.leases.keys() - before.leases.keys())
        if gone or new:  # renewals are no news
            self._agent.emit(
                "lease",
                f"leases of the {BY}: {len(leases.leases)}"
                + (f", new: {named(new)}" if new else "")
                + (f", gone: {named(gone)}" if gone else ""),
                by=BY,
                leased=len(leases.leases),
                new=new[:NAMED_MAX],
                gone=gone[:NAMED_MAX],
            )

    def assign(self, assignment: Assignment) -> None:
        """Labels or status of this host are others: everything is judged again."""
        agent = self._agent
        old_labels, old = self.labels, self.assignment
        self._is_sent_away &= assignment.status in _SUSPENDED
        self.assignment = assignment
        agent.licensing.set_labels(assignment.labels)
        self.apply_leases()
        agent.conditions.judge()  # and tells what came of it
        agent.write_licenses()
        if dict(old_labels) != dict(assignment.labels):
            agent.emit(
                "assignment",
                f"labels of this host, by the {BY}: {_labels(old_labels)} -> "
                f"{_labels(assignment.labels)}",
                by=BY,
                old=dict(old_labels),
                new=dict(assignment.labels),
            )
        if old is None or old.status is not assignment.status:
            agent.emit(
                "assignment",
                f"this host is {assignment.status.name.lower()}, says the {BY}",
                by=BY,
                old=old.status.name.lower() if old else None,
                new=assignment.status.name.lower(),
            )

    def tell(self, code: NoticeCode, detail: str) -> None:
        """Keep on record what the control plane had to say."""
        if code in _SENT_AWAY:
            self._is_sent_away = True
            self.apply_leases()
            self._agent.write_licenses()
        word = code.name.lower().replace("_", "-")
        self._agent.emit("control", f"the {BY} says {word}: {detail}", by=BY, notice=word)

    def tell_of_link(self, state: ControlState, *, is_up: bool) -> None:
        """Keep on record that the link came up or went down."""
        if is_up:
            message = f"connected to the {BY} at {state.server}"
        else:
            message = f"the link to the {BY} at {state.server} is down: {state.last_error}"
        self._agent.emit("control", message, server=state.server, connected=is_up)

    def apply_leases(self, *, is_answer: bool = False) -> None:
        """Tell the judgement of the leases.

        `is_answer`: the control plane was asked a moment ago, and what it did not name it has
        refused. That ends also a license which would go on without a lease.
        """
        licensing = self._agent.licensing
        ends = {}
        denied = set()
        status = HostStatus.UNSPECIFIED if self.assignment is None else self.assignment.status
        for jti, held in licensing.held.items():
            if not held.managed:
                continue
            number = held.license.number
            end_ns = self.leases.end_of(jti, held.license.generation)
            if self._is_sent_away and held.license.failure_mode == "open":
                denied.add(number)  # no lease's end would ever end it
            elif status is HostStatus.LEAVING:
                denied.add(number)  # what is used from now on would never be settled
            elif end_ns:
                ends[number] = end_ns
            elif is_answer or status in _SUSPENDED:
                denied.add(number)
        licensing.set_leases(ends, denied)


def named(names: Sequence[str]) -> str:
    """Names for people, of which there may be 100,000."""
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in sorted(labels.items())) or "none"
