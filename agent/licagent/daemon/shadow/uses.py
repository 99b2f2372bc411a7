# SPDX-License-Identifier: Apache-2.0
"""Uses that enforcing ends or would end, read from the event log: who used what, how often."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from licagent.daemon.decisions import CUT

REFUSED: Final = frozenset({"deny", "cut"})
_COUNTED: Final = frozenset({"shadow", *REFUSED})

USES_MAX: Final = 20_000
"""Different uses in memory and in one answer, at some 1.2 KiB each. What has no room is
counted."""
_PIDS_MAX: Final = 4096
"""A sum of repeats is told within seconds of the first of them."""
_NAMED_MAX: Final = 20
"""An event about leases names no more than so many."""


class Actor(NamedTuple):
    """What a record shows of who used what; by this uses are told apart. None: not shown."""

    resource: str
    uid: int | None
    gid: int | None
    user: str | None
    executable: str | None
    name: str | None  # None where the executable is known
    unit: str | None
    slice: str | None
    container: str | None
    cgroup: str | None


@dataclass(slots=True)
class Use:
    """How often somebody used something, and when."""

    actor: Actor
    count: int = 0
    refused: int = 0  # of these
    first_at: str = ""
    last_at: str = ""
    decided_at: str = ""
    """The last use whose moment is known. A sum of repeats has that of its telling, which may be
    after a change of the rules and a restart."""
    reason: str = ""

    def take(self, record: Mapping[str, Any]) -> None:
        """Count a record."""
        count, at = int(record.get("count") or 1), str(record.get("at"))
        self.count += count
        if record.get("verdict") in REFUSED:
            self.refused += count
        self.first_at = self.first_at or at
        if at >= self.last_at:
            self.last_at = at
            self.reason = str(record.get("reason") or "")
        if not record.get("folded"):
            self.decided_at = max(self.decided_at, at)

    def add(self, other: Use) -> None:
        """Count what turned out to be the same use."""
        self.count += other.count
        self.refused += other.refused
        self.first_at = min(self.first_at, other.first_at)
        if other.last_at > self.last_at:
            self.last_at, self.reason = other.last_at, other.reason
        self.decided_at = max(self.decided_at, other.decided_at)


@dataclass(slots=True)
class Uses:
    """All uses of a log."""

    by_actor: dict[Actor, Use] = field(default_factory=dict)
    left_out: int = 0
    """Uses, counted each time, of those who had no room."""
    lost: int = 0
    """Events that the disk had no room for."""
    license_changes: dict[str, str] = field(default_factory=dict)
    """When something was last said of a license: it came, was revoked, leased, conditions held."""
    leases_at: str = ""
    """When more leases came than are told by name."""
    log_since: str = ""
    """The oldest record that is there; "" of an empty log."""
    _programs: dict[tuple[Any, ...], str] = field(default_factory=dict)
    """Executables by what else is known of a run; "" where there were several."""
    _of_pid: OrderedDict[tuple[Any, ...], Actor] = field(default_factory=OrderedDict)

    def take(self, records: Iterable[Mapping[str, Any]], since: str | None = None) -> None:
        """Count all records, in the order of the log; those before `since` only for who it was."""
        for record in records:
            self.log_since = self.log_since or str(record.get("at"))
            self.lost += int(record.get("lost_before") or 0)
            if record.get("kind") != "decision":
                self._note_change(record)
            elif record.get("verdict") in _COUNTED:
                self._count(record, since)
        self._complete()

    def most_used(self) -> list[Use]:
        """Most used first."""
        return sorted(self.by_actor.values(), key=lambda use: (-use.count, use.actor.resource))

    def changed_at(self, license_id: str) -> str:
        """The last known change of what a license is worth here."""
        return max(self.license_changes.get(license_id, ""), self.leases_at)

    def _count(self, record: Mapping[str, Any], since: str | None) -> None:
        actor = self._actor(record)
        if since and str(record.get("at")) < since:
            return
        use = self.by_actor.get(actor)
        if use is None:
            if len(self.by_actor) >= USES_MAX:
                self.left_out += int(record.get("count") or 1)
                return
            use = self.by_actor[actor] = Use(actor)
        use.take(record)

    def _actor(self, record: Mapping[str, Any]) -> Actor:
        process = record.get("process") or {}
        # A sum of repeats no longer knows who it was once the process has ended: the first of
        # them, which was told whole, does.
        key = (process.get("pid"), record.get("resource"), record.get("reason"))
        if record.get("folded") and key in self._of_pid:
            return self._of_pid[key]
        executable, name = process.get("executable"), process.get("name")
        cgroup = process.get("cgroup")
        if cgroup and CUT in cgroup:
            cgroup = None
        found = Actor(
            str(record.get("resource") or ""),
            process.get("uid"),
            process.get("gid"),
            process.get("user"),
            executable,
            None if executable else name,
            process.get("unit"),
            process.get("slice"),
            process.get("container"),
            cgroup,
        )
        if executable and len(self._programs) < USES_MAX:
            kept = self._programs.setdefault(_run_of(found, name), executable)
            if kept != executable:
                self._programs[_run_of(found, name)] = ""
        if process.get("pid"):
            self._of_pid[key] = found
            self._of_pid.move_to_end(key)
            while len(self._of_pid) > _PIDS_MAX:
                self._of_pid.popitem(last=False)
        return found

    def _complete(self) -> None:
        """Give programs that had ended the executable that other runs of them told.

        By name, user and unit, as the list in `status` has it, where it was always the same one.
        """
        for actor in [each for each in self.by_actor if not each.executable and each.name]:
            executable = self._programs.get(_run_of(actor, actor.name))
            if executable:
                use = self.by_actor.pop(actor)
                use.actor = actor._replace(executable=executable, name=None)
                held = self.by_actor.setdefault(use.actor, use)
                if held is not use:
                    held.add(use)

    def _note_change(self, record: Mapping[str, Any]) -> None:
        at, kind = str(record.get("at")), record.get("kind")
        if kind == "license" and record.get("license"):
            self.license_changes[str(record["license"])] = at
        elif kind == "condition":
            for each in record.get("licenses") or ():
                self.license_changes[str(each.get("license"))] = at
        elif kind == "lease":
            new = record.get("new") or ()
            self.license_changes.update((str(each), at) for each in new)
            if len(new) >= _NAMED_MAX:
                self.leases_at = at


def _run_of(actor: Actor, name: str | None) -> tuple[Any, ...]:
    return actor.resource, actor.uid, actor.gid, actor.unit, actor.container, name
