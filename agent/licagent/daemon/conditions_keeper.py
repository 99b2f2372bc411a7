# SPDX-License-Identifier: Apache-2.0
"""Licenses follow what this host is: labels, posture, hours. Judged again when these change.

On the kernel thread only. What is lost is taken from the kernel at once, and its sockets end;
what is gained works at once. Each change is on record, with what it came from.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon.decisions import rfc3339
from licagent.domain.entitlements import Entitlements, has_conditions
from licagent.domain.license import HostFacts, applicability
from licagent.domain.reason import Reason
from licagent.host.posture import boottime_ns
from licagent.store.errors import DocumentDamaged, StoreError
from lictoken.claims import License

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.licensing.judging import Held
    from licagent.host.facts import FactReader

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "host-facts"
_SCHEMA: Final = "licagent.host-facts/1"

_RENEW_NS: Final = 10 * 1_000_000_000
"""How often the kernel is told anew that conditions hold (`slot.ATTESTED_NS`)."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What one license was worth at the last judgement, time and revocation aside."""

    generation: int
    lost: frozenset[str]  # resources that it does not grant because of host or conditions
    why: str


@dataclass(frozen=True, slots=True)
class FactChange:
    """A fact about the host that is another one now; None stands for not known."""

    fact: str  # label:region, posture:secure_boot, hostname
    old: str | None
    new: str | None

    def __str__(self) -> str:
        """For a message."""
        unknown = "unknown" if self.fact.startswith("posture:") else "none"
        return f"{self.fact}: {self.old or unknown} -> {self.new or unknown}"


class ConditionsKeeper:
    """Sees to it that licenses with conditions are judged by what the host is now."""

    def __init__(self, agent: Agent, reader: FactReader) -> None:
        self._agent = agent
        self._reader = reader
        self._host: HostFacts | None = None  # at the last judgement
        self._held: Mapping[str, Held] = {}  # the licenses of the last judgement
        self._conditional: tuple[str, ...] = ()  # those of them with conditions
        self._known: dict[str, _Known] = {}
        self._changes_at_s: int | None = None
        self._written_ns = 0
        self._tried: frozenset[tuple[str, str]] | None = None  # a policy compiled for these
        self._is_to_be_tried = False

    def begin(self) -> None:
        """Find out what this host is, before the first license is judged, and what it was."""
        self._agent.licensing.set_facts(self._reader.read())
        try:
            body = self._agent.state.read_document(_DOCUMENT, _SCHEMA)
        except DocumentDamaged as error:
            _log.error("%s", error)
            body = None
        if body is not None:
            self._host = replace(
                self._agent.licensing.host,
                hostname=body["hostname"],
                labels=body["labels"],
                facts=body["facts"],
            )

    def refresh(self) -> None:
        """Look at the host again, and judge again if anything has changed."""
        self._agent.licensing.set_facts(self._reader.read())
        self._agent.licensing.set_hostname(socket.gethostname())
        if not self._is_settled():
            self.judge()
        elif boottime_ns() - self._written_ns >= _RENEW_NS:
            self._written_ns = boottime_ns()
            self._agent.write_few(self._conditional)

    def attest(self) -> None:
        """Look at the host, and tell the kernel of conditions that hold although it gave them up.

        After a suspend, or a daemon that hung for a minute: their sockets are silent, and would
        be closed for nothing.
        """
        late = [
            jti
            for jti in self._conditional
            if (slot := self._agent.kernel.licenses.get(self._held[jti].license.number)) is not None
            and slot.end_reason is Reason.CONDITION
            and slot.not_after_ns <= boottime_ns()
        ]
        if not late:
            return
        try:
            self._agent.licensing.set_facts(self._reader.read())
        except OSError as error:
            _log.error("the host's posture cannot be read: %s", error)
            return
        self._agent.write_few(late)

    def _is_settled(self) -> bool:
        """Whether the last judgement is that of now: the same host, licenses, and hours."""
        licensing, clock = self._agent.licensing, self._agent.clock
        now_ns = boottime_ns()
        change_s = self.change_in_s()
        return (
            not self._is_to_be_tried
            and licensing.host == self._host
            and licensing.held is self._held
            and (change_s is None or change_s > 0)
            and clock.earliest_ns(now_ns) == clock.now_ns(now_ns)  # else hours are in doubt
        )

    def change_in_s(self) -> float | None:
        """Seconds until hours begin or end, by the last judgement; None: they never do."""
        if self._changes_at_s is None:
            return None
        return self._changes_at_s - self._agent.clock.now_ns(boottime_ns()) / 1e9

    def judge(self) -> None:
        """Judge all licenses by what the host is now, and bring the kernel to it."""
        agent = self._agent
        host = agent.licensing.host
        found: dict[str, _Known] = {}
        changes: list[int] = []
        self._held = agent.licensing.held
        self._conditional = tuple(
            jti for jti, held in self._held.items() if has_conditions(held.license)
        )
        for jti, held in self._held.items():
            entitlements = agent.licensing.entitlements(held.license)
            found[jti] = _known(held.license, host, entitlements)
            if entitlements.changes_at_s is not None:
                changes.append(entitlements.changes_at_s)
        last_host, is_new = self._host or host, self._host is None
        before = {jti: self._before(jti, last_host) for jti in found}
        self._known, self._host = found, host
        self._changes_at_s = min(changes, default=None)
        facts = fact_changes(last_host, host)
        affected = [
            (jti, before[jti], one) for jti, one in found.items() if before[jti].lost != one.lost
        ]
        sockets_cut = self._bring(is_changed=bool(affected or facts))
        if affected or facts:
            self._tell(facts, affected, sockets_cut)
        if facts or is_new:  # so that a change while nobody looks, a new kernel, is told of, too
            body = {
                "hostname": host.hostname,
                "labels": dict(host.labels),
                "facts": dict(host.facts),
            }
            self._agent.state.write_document(_DOCUMENT, _SCHEMA, body)

    def _before(self, jti: str, last_host: HostFacts) -> _Known:
        """What a license was worth at the last judgement, or is worth to what the host was then."""
        licensing = self._agent.licensing
        license_ = licensing.held[jti].license
        known = self._known.get(jti)
        if known is not None and known.generation == license_.generation:
            return known
        return _known(license_, last_host, licensing.entitlements(license_, last_host))

    def _bring(self, *, is_changed: bool) -> int:
        """Bring the kernel to the judgement; how many sockets ended by it."""
        agent = self._agent
        now_ns = boottime_ns()
        withheld = agent.licensing.withheld()
        compiled = agent.policy.compiled
        is_policy_old = compiled is not None and withheld not in (
            compiled.tables.withheld,
            self._tried,
        )
        if not is_changed and not is_policy_old and now_ns - self._written_ns < _RENEW_NS:
            return 0
        self._written_ns = now_ns
        agent.last_cut = []
        agent.write_licenses()
        cut = len(agent.last_cut)
        if compiled is not None and is_policy_old:
            self._tried = withheld
            agent.last_cut = []
            try:
                agent.licensing.all_or_nothing = not agent.policy.renew()
            except (StoreError, OSError) as error:
                # What a license lost must not stay granted until then.
                _log.error("no policy without what conditions took: %s. It is tried again", error)
                agent.licensing.all_or_nothing, self._tried = True, None
            self._is_to_be_tried = self._tried is None
            if agent.licensing.all_or_nothing:  # no tables that leave out what was lost
                agent.write_licenses()
            cut += len(agent.last_cut)
        return cut

    def _tell(
        self,
        facts: Sequence[FactChange],
        affected: Sequence[tuple[str, _Known, _Known]],
        sockets_cut: int,
    ) -> None:
        rows: list[dict[str, Any]] = []
        words: list[str] = []
        for jti, old, new in affected:
            lost, gained = sorted(new.lost - old.lost), sorted(old.lost - new.lost)
            rows.append({"license": jti, "lost": lost, "gained": gained, "why": new.why or None})
            if lost:
                words.append(f"license {jti} no longer grants {', '.join(lost)} ({new.why})")
            if gained:
                words.append(f"license {jti} grants {', '.join(gained)} again")
        cause = "; ".join(map(str, facts)) or "hours"
        self._agent.emit(
            "condition",
            f"{cause}: {'; '.join(words[:10]) or 'no license here depends on it'}",
            facts=[{"fact": each.fact, "old": each.old, "new": each.new} for each in facts],
            licenses=rows,
            sockets_cut=sockets_cut,
            at_trusted=rfc3339(self._agent.clock.now_ns(boottime_ns()) / 1e9),
        )


def _known(license: License, host: HostFacts, entitlements: Entitlements) -> _Known:
    for detail, _hint in applicability(license, host):
        everything = frozenset(each.resource for each in license.entitlements)
        return _Known(license.generation, everything, detail)
    if not has_conditions(license):
        return _Known(license.generation, frozenset(), "")
    why = "; ".join(dict.fromkeys(each.detail for each in entitlements.problems()))
    return _Known(license.generation, entitlements.failing, why)


def fact_changes(old: HostFacts, new: HostFacts) -> tuple[FactChange, ...]:
    """What is another now, in the words of conditions."""
    return (
        *_differences("", {"hostname": old.hostname}, {"hostname": new.hostname}),
        *_differences("label:", old.labels, new.labels),
        *_differences("posture:", old.facts, new.facts),
    )


def _differences(
    prefix: str, old: Mapping[str, str], new: Mapping[str, str]
) -> Iterable[FactChange]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield FactChange(prefix + name, old.get(name), new.get(name))
