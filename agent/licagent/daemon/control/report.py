# SPDX-License-Identifier: Apache-2.0
"""What this host reports to its control plane: its state, decisions, and who uses what."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter as Tally
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from licagent.control.report import (
    DecisionCount,
    HookState,
    HostReport,
    HostState,
    LiveUse,
    MapDigest,
    ShadowUsage,
)
from licagent.daemon.decisions import boottime_to_unix
from licagent.daemon.reports import VERSION
from licagent.daemon.status_reasons import reasons_of
from licagent.host import posture
from licagent.host.cgroups import names_of
from licagent.host.processes import executable_of
from licagent.kernel.enforcement_structs import SocketRecord
from licagent.kernel.libbpf import BpfError
from licagent.kernel.numbers import TagKind
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.domain.tables import Tables

_log: Final = logging.getLogger(__name__)

_ROWS_MAX: Final = 1000
"""Rows of a kind in one report: the most used come first. A message has 4 MiB."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was taken on the kernel thread, for `Reporter.finish`."""

    report: HostReport
    generation: int
    tables: Tables | None
    slots: dict[int, int]  # license number -> slot


class Reporter:
    """Builds reports. `take` runs on the kernel thread, `finish` on any one."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._wanted: tuple[int, Tables, dict[str, bytes]] | None = None

    def take(self) -> Snapshot:
        """Everything but the digests of the kernel's tables."""
        agent = self._agent
        tables = None if agent.policy.compiled is None else agent.policy.compiled.tables
        table = agent.kernel.licenses
        numbers = {number for rule in tables.rules for number in rule.licenses} if tables else ()
        return Snapshot(
            HostReport(
                at_unix_ms=int(time.time() * 1000),
                state=self._state(),
                decisions=self._decisions(),
                shadow=self._shadow(),
                live=self._live(),
            ),
            agent.kernel.control.generation,
            tables,
            {number: table.slot(number) for number in numbers},
        )

    def finish(self, snapshot: Snapshot) -> HostReport:
        """The report, with the digests. Reads whole tables."""
        if snapshot.tables is None:
            return snapshot.report
        try:
            maps = self._digests(snapshot, snapshot.tables)
        except BpfError as error:
            _log.error("the kernel's tables cannot be read: %s", error)
            maps = ()
        if self._agent.kernel.control.generation != snapshot.generation:
            maps = ()  # switched meanwhile: the next report has them
        return replace(snapshot.report, state=replace(snapshot.report.state, maps=maps))

    def _state(self) -> HostState:
        agent = self._agent
        hooks = agent.kernel.hooks()
        left_s = agent.glass.left_s()
        return HostState(
            mode=agent.config.mode,
            agent_version=VERSION,
            boot_id=posture.boot_id(),
            hostname=agent.licensing.host.hostname,
            kernel_release=posture.kernel_release(),
            revision=agent.control.managed.revision,
            generation=agent.kernel.control.generation,
            hooks=tuple(
                HookState(
                    each.name, each.attached, each.link_id or 0, each.program_id or 0, each.error
                )
                for each in hooks
            ),
            posture=dict(agent.licensing.host.facts),
            degraded=tuple(
                f"{each['code']}: {each['message']}" for each in reasons_of(agent, hooks)
            ),
            break_glass_until_unix_ms=(
                int(boottime_to_unix(int(agent.glass.opening["until_boottime_ns"])) * 1000)
                if agent.glass.opening is not None and left_s is not None and left_s > 0
                else 0
            ),
            labels=dict(agent.membership.labels),
            refused_licenses=self._refused(),
            authorities=self._authorities(),
        )

    def _authorities(self) -> tuple[str, ...]:
        """The roots that this host verifies the control plane with."""
        try:
            identity = self._agent.link.identities.load()
        except StoreError:
            return ()
        if identity is None:
            return ()
        return tuple(hashlib.sha256(each).hexdigest() for each in identity.ca_certificates)

    def _refused(self) -> dict[str, str]:
        agent = self._agent
        found = {each.file: each.detail for each in agent.licensing.refused}
        for jti, held in agent.licensing.held.items():
            judgement = agent.licensing.judge(held.license)
            if not judgement.valid:
                found[jti] = f"{judgement.state.value}: {judgement.detail}"
        return dict(sorted(found.items())[:_ROWS_MAX])

    def _decisions(self) -> tuple[DecisionCount, ...]:
        agent = self._agent
        counters = sorted(agent.kernel.counters.read(), key=lambda each: -each.count)
        return tuple(
            DecisionCount(
                (agent.records.jti_of(each.license) or "") if each.license else "",
                agent.names.resource(each.resource) or "",
                each.verdict.name.lower(),
                each.reason.name.lower(),
                each.count,
            )
            for each in counters[:_ROWS_MAX]
        )

    def _shadow(self) -> tuple[ShadowUsage, ...]:
        return tuple(_shadow_row(row) for row in self._agent.shadow.rows()[:_ROWS_MAX])

    def _live(self) -> tuple[LiveUse, ...]:
        """Live sockets; one that several processes hold counts once, for who opened it."""
        agent = self._agent
        seen: set[int] = set()
        found: Tally[tuple[str, str, str]] = Tally()
        selectors: dict[tuple[int, int, int], str] = {}
        for record in agent.kernel.iterators.sockets():
            if not record.tagged or record.cookie in seen:
                continue
            seen.add(record.cookie)
            for half in (record.tag.network, record.tag.service):
                if half.kind != TagKind.LICENSED:
                    continue
                number = agent.kernel.licenses.number_at(half.slot)
                who = (record.tag.cgroup, record.tag.path, record.tag.uid)
                if who not in selectors:
                    selectors[who] = self._selector_of(record)
                license_ = agent.records.jti_of(number) or ""
                resource = agent.names.resource(half.resource) or ""
                found[license_, resource, selectors[who]] += 1
        return tuple(LiveUse(*key, count) for key, count in found.most_common(_ROWS_MAX))

    def _selector_of(self, record: SocketRecord) -> str:
        agent = self._agent
        path = agent.tree.path_of(record.tag.cgroup)
        names = names_of(path) if path else None
        executable = agent.names.path(record.tag.path)
        if executable is None:
            executable, _ = executable_of(record.tag.pid)
        return selector_of(
            unit=names.unit if names else None,
            container=names.container if names else None,
            executable=executable,
            user=agent.users.user_name(record.tag.uid),
            uid=record.tag.uid,
        )

    # --- what the kernel holds

    def _digests(self, snapshot: Snapshot, tables: Tables) -> tuple[MapDigest, ...]:
        agent = self._agent
        writer = agent.kernel.tables
        known = self._wanted
        if known is None or known[0] != snapshot.generation or known[1] is not tables:
            entries = writer.entries(
                tables,
                snapshot.generation,
                snapshot.slots.__getitem__,
                enforce=agent.config.mode == "enforce",
                keep_existing=agent.config.existing_sockets == "keep",
            )
            wanted = {name: _digest(each) for name, each in entries.items()}
            known = self._wanted = (snapshot.generation, tables, wanted)
        return tuple(
            MapDigest(name, digest, _digest(writer.held(name, snapshot.generation)))
            for name, digest in known[2].items()
        )


def selector_of(
    *,
    unit: str | None,
    container: str | None,
    executable: str | None,
    user: str | None,
    uid: int | None,
) -> str:
    """The most specific selector of a workload that will still be its own tomorrow."""
    if container:
        return f"container:id:{container}"
    if unit and not unit.startswith(("session-", "run-", "user@")):
        return f"systemd:unit:{unit}"
    if executable and executable.startswith("/") and not executable.endswith(" (deleted)"):
        return f"unix:path:{executable}"
    if user and not user.isdigit():
        return f"unix:user:{user}"
    return "host" if uid is None else f"unix:uid:{uid}"


def _shadow_row(row: dict[str, Any]) -> ShadowUsage:
    user = str(row["user"] or "")
    return ShadowUsage(
        resource=str(row["resource"]),
        selector=selector_of(
            unit=row["unit"],
            container=None,
            executable=row["executable"],
            user=user,
            uid=int(user) if user.isdigit() else None,
        ),
        executable=str(row["executable"] or ""),
        user=user,
        count=int(row["count"]),
        first_unix_ms=_unix_ms(row["first_at"]),
        last_unix_ms=_unix_ms(row["last_at"]),
        reason=str(row.get("reason") or ""),
    )


def _unix_ms(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        return 0


def _digest(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """SHA-256 over the entries in the order of their keys."""
    hasher = hashlib.sha256()
    for key, value in sorted(entries):
        hasher.update(key + value)
    return hasher.digest()
