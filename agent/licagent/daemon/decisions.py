# SPDX-License-Identifier: Apache-2.0
"""Kernel events as records that people and programs can read."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from licagent.domain.reason import REASON_ERRNO, Reason, Verdict
from licagent.domain.rulebook import RuleChange
from licagent.domain.tables import FAILSAFE_RESOURCE, FAMILY_RESOURCE, ResourceEntry, Rule, Tables
from licagent.host.cgroups import CgroupTree, names_of
from licagent.host.processes import Process, ProcessGone, describe
from licagent.host.users import Users
from licagent.kernel.enforcement_structs import Event, RepeatKey
from licagent.kernel.numbers import Hook

_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp", 255: "other"}
_FAMILIES: Final = {
    **{int(family): family.name for family in socket.AddressFamily},
    43: "AF_SMC",
    44: "AF_XDP",
}
"""Python 3.11 does not know the last two (include/linux/socket.h)."""
_DESCRIBED_MAX: Final = 512
_DESCRIBED_FOR_S: Final = 5.0
_CGROUPS_MAX: Final = 4096
_GONE_RULES_MAX: Final = 4096
_TICK_NS: Final = 20_000_000
"""Start times are told in clock ticks, of at most 10 ms."""

_PATH_BYTES_MAX: Final = 512
CUT: Final = "...#"
"""In a path that was too long to be kept: between its beginning and the hash of the whole."""

Record = dict[str, Any]


def rfc3339(unix_s: float) -> str:
    """UTC with milliseconds and a Z (RFC 3339)."""
    return (
        datetime.fromtimestamp(unix_s, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def boottime_to_unix(boottime_ns: int) -> float:
    """Wall time of a CLOCK_BOOTTIME reading, by today's wall clock."""
    ago_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boottime_ns
    return (time.time_ns() - ago_ns) / 1e9


def address_text(words: Any, port: int, *, is_ipv6: bool) -> str | None:
    """ "10.0.0.1:80" or "[::1]:80" from four words in network order; None for none at all."""
    raw = struct.pack("=4I", *words)
    if not any(raw) and not port:
        return None
    if is_ipv6:
        return f"[{socket.inet_ntop(socket.AF_INET6, raw)}]:{port}"
    return f"{socket.inet_ntop(socket.AF_INET, raw[:4])}:{port}"


def kept_path(path: str | None) -> str | None:
    """A path as it is kept in a record: a long one without its middle, with its last name.

    Whoever runs a program chooses its path, of up to 4 KiB that JSON writes as 24. A decision
    must fit into an event all the same.
    """
    if path is None:
        return None
    data = os.fsencode(path)
    if len(data) <= _PATH_BYTES_MAX:
        return path
    name = data.rpartition(b"/")[2][-256:]
    tail = f"{CUT}{hashlib.sha256(data).hexdigest()[:16]}/".encode() + name
    return os.fsdecode(data[: _PATH_BYTES_MAX - len(tail)] + tail)


@dataclass(slots=True)
class NameBook:
    """What the numbers in events stand for, under the policy in force."""

    license_id: Callable[[int], str | None]
    rules: dict[int, Rule] = field(default_factory=dict)
    resources: Mapping[int, ResourceEntry] = field(default_factory=dict)
    paths: Mapping[int, str] = field(default_factory=dict)

    def amend(self, tables: Tables, change: RuleChange) -> None:
        """Follow a change of single rules. Those that went stay known: events may still come."""
        if len(self.rules) > 2 * len(tables.rules) + _GONE_RULES_MAX:
            self.take(tables)
            return
        for rule in (*change.added, *(after for _before, after in change.changed)):
            self.rules[rule.number] = rule
        self.paths = dict(tables.paths)

    def take(self, tables: Tables) -> None:
        """Follow a switch of policy. Names of resources that went stay known."""
        self.rules = {rule.number: rule for rule in tables.rules}
        self.paths = dict(tables.paths)
        self.resources = {**self.resources, **{each.number: each for each in tables.resources}}

    def path(self, number: int) -> str | None:
        """The path of a `unix:path` selector that an executable was recognised by."""
        return self.paths.get(number)

    def resource(self, number: int) -> str | None:
        """A resource's name."""
        if number == FAILSAFE_RESOURCE:
            return "failsafe"
        if number == FAMILY_RESOURCE:
            return "other-families"
        entry = self.resources.get(number)
        return None if entry is None else entry.name


def _network(event: Event) -> Record:
    if event.hook == Hook.FAMILY:
        # A socket that may go anywhere; its family stands where a port would.
        family = _FAMILIES.get(event.destination_port, f"family {event.destination_port}")
        return {"family": family, "protocol": family, "source": None, "destination": None}
    is_ipv6 = bool(event.is_ipv6)
    return {
        "family": "ipv6" if is_ipv6 else "ipv4",
        "protocol": _PROTOCOLS.get(event.protocol, "other"),
        "source": address_text(event.source, event.source_port, is_ipv6=is_ipv6),
        "destination": address_text(event.destination, event.destination_port, is_ipv6=is_ipv6),
    }


class DecisionBook:
    """Turns events into records. Descriptions of processes are kept for a few seconds."""

    def __init__(self, names: NameBook, tree: CgroupTree, users: Users) -> None:
        self._names = names
        self._tree = tree
        self._users = users
        self._described: OrderedDict[tuple[int, int], tuple[float, Process | None]] = OrderedDict()
        self._cgroups: dict[int, str] = {}

    def record(self, event: Event) -> Record:
        """One decision as a record (docs/reference/events.md)."""
        verdict, reason = Verdict(event.verdict), Reason(event.reason)
        rule = self._names.rules.get(event.rule)
        record: Record = {
            "kind": "decision",
            "at": rfc3339(boottime_to_unix(event.at_ns)),
            "verdict": verdict.name.lower(),
            "reason": reason.name.lower(),
            "errno": errno_name(reason) if verdict is Verdict.DENY else None,
            "license": self._names.license_id(event.license) if event.license else None,
            "resource": self._names.resource(event.resource),
            "rule": event.rule or None,
            "binding": rule.binding if rule else None,
            "selectors": list(rule.selectors) if rule else [],
            "source": rule.source if rule else None,
            "process": self._process(event),
            "network": _network(event),
            "hook": Hook(event.hook).name.lower() if event.hook else None,
            "cookie": event.cookie or None,
            "count": event.count,
        }
        return record

    def folded(self, key: RepeatKey, count: int) -> Record:
        """The tail of a series of repeats."""
        event = Event(
            verdict=key.verdict,
            reason=key.reason,
            at_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            count=count,
            license=key.license,
            resource=key.resource,
            pid=key.pid,
            uid=0xFFFFFFFF,
            gid=0xFFFFFFFF,
            exec_id=key.exec_id,
        )
        # Repeats are folded over destinations, so there is none to name.
        return {**self.record(event), "network": None, "folded": True}

    def _process(self, event: Event) -> Record:
        found = self._describe(event.pid, event.exec_id, event.at_ns) if event.pid else None
        cgroup = self._cgroup(event.cgroup) if event.cgroup else None
        if found is not None and cgroup is None:
            cgroup = found.cgroup
        names = names_of(cgroup) if cgroup else None
        uid = event.uid if event.uid < 0xFFFFFFFE else (found.uid if found else None)
        gid = event.gid if event.gid < 0xFFFFFFFE else (found.gid if found else None)
        return {
            "pid": event.pid or None,
            # The name at that moment, where the kernel told it: it may run something else by now.
            "name": event.comm.decode(errors="replace") or (found.name if found else None),
            "executable": kept_path(found.executable if found else self._names.path(event.path)),
            "uid": uid,
            "user": self._users.user_name(uid) if uid is not None else None,
            "gid": gid,
            "unit": names.unit if names else None,
            "slice": names.slice if names else None,
            "container": names.container if names else None,
            "cgroup": kept_path(cgroup),
        }

    def _cgroup(self, number: int) -> str | None:
        """The path of a cgroup, also when it is gone by now.

        An id is never used again and a cgroup v2 folder is never renamed (kernfs ids are 64 bits;
        cgroup_rename() is v1's), so what was found once holds.
        """
        known = self._cgroups.get(number)
        if known is None:
            known = self._tree.path_of(number)
            if known is not None:
                if len(self._cgroups) >= _CGROUPS_MAX:
                    self._cgroups.clear()
                self._cgroups[number] = known
        return known

    def _describe(self, pid: int, exec_id: int, at_ns: int) -> Process | None:
        key = (pid, exec_id)
        now = time.monotonic()
        known = self._described.get(key)
        if known is not None and now - known[0] < _DESCRIBED_FOR_S:
            return known[1]
        try:
            found: Process | None = describe(pid, self._users)
        except ProcessGone:
            found = None
        if found is None or found.started_boottime_ns > at_ns + _TICK_NS:
            # It ended, and perhaps another process has its id by now.
            found = known[1] if known is not None else None
        self._described[key] = (now, found)
        self._described.move_to_end(key)
        while len(self._described) > _DESCRIBED_MAX:
            self._described.popitem(last=False)
        return found


def errno_name(reason: Reason) -> str | None:
    """ "ENOKEY" and the like, on kernels that can say it."""
    import errno

    number = REASON_ERRNO.get(reason)
    return None if number is None else errno.errorcode.get(number, str(number))
