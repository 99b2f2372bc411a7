# SPDX-License-Identifier: Apache-2.0
"""What the kernel decides, as a pure function: for `explain`, and as the measure of its tests.

bpf/decide.h is the same in C; tests/kernel compares the two on random policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from licagent.domain.license import LicenseState
from licagent.domain.networks import WIDTHS
from licagent.domain.reason import Reason, Verdict
from licagent.domain.tables import (
    ANY_ID,
    ANY_OWNER,
    FAILSAFE_RESOURCE,
    SERVICE_CLASS,
    PortFlag,
    PortPrefix,
    Protocol,
    Rule,
    RuleKey,
    Shape,
    Tables,
)

_MAPPED: Final = 0xFFFF
_LOOPBACK4: Final = 0x7F000001
_PORTLESS: Final = frozenset((Protocol.ICMP, Protocol.OTHER))


class Direction(StrEnum):
    """Which way a use goes."""

    OUT = "out"  # connect, send: the address and port are the destination's
    IN = "in"  # bind: the port is this host's, the address plays no part


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks, in the numbers of the compiled policy."""

    path: int = ANY_ID  # 0: no path that the policy names
    digest: int = ANY_ID  # 0: none that the policy names, or not measured yet
    scopes: tuple[int, ...] = ()  # of its cgroup and that one's ancestors, deepest first
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer and how it came about."""

    verdict: Verdict  # NONE where no resource is touched: nothing to count, nothing to report
    reason: Reason
    resource: int = 0  # 0: no resource
    rule: Rule | None = None  # the rule that matched, if any
    license: int = 0  # fleet-wide number; 0 where no rule matched, or its license is gone

    @property
    def passes(self) -> bool:
        """Whether the use goes through."""
        return self.verdict is not Verdict.DENY


class PolicyIndex:
    """A compiled policy made ready for look-ups. Build it once for many decisions."""

    def __init__(self, tables: Tables) -> None:
        self.tables: Final = tables
        self._classes: Final = {
            (entry.family, entry.prefix_length, entry.address): entry.class_number
            for entry in tables.networks
        }
        self._lengths: Final = {
            family: sorted(
                {entry.prefix_length for entry in tables.networks if entry.family == family},
                reverse=True,
            )
            for family in WIDTHS
        }
        self._ports: Final = {
            (entry.class_number, entry.protocol, entry.bits, entry.port): entry
            for entry in tables.ports
        }
        self._rules: Final = {rule.key: rule for rule in tables.rules}

    def class_of(self, family: int, address: int) -> int | None:
        """The class of a normalised address, by longest prefix; None: no licensed network."""
        width = WIDTHS[family]
        for length in self._lengths[family]:
            start = address >> (width - length) << (width - length)
            found = self._classes.get((family, length, start))
            if found is not None:
                return found
        return None

    def port_of(self, class_number: int, protocol: Protocol, port: int) -> PortPrefix | None:
        """The entry of a port, by longest prefix."""
        for bits in range(16, -1, -1):
            start = port >> (16 - bits) << (16 - bits)
            found = self._ports.get((class_number, protocol, bits, start))
            if found is not None:
                return found
        return None

    def rule_of(self, resource: int, subject: Subject) -> Rule | None:
        """The most specific rule for `subject`; there is no way back to a less specific one."""
        for shape in self.tables.shapes:
            # A selector that has no value for this subject cannot hold.
            if (shape & Shape.PATH and not subject.path) or (
                shape & Shape.DIGEST and not subject.digest
            ):
                continue
            for scope in subject.scopes if shape & Shape.SCOPE else (ANY_ID,):
                key = RuleKey(
                    resource,
                    path=subject.path if shape & Shape.PATH else ANY_ID,
                    digest=subject.digest if shape & Shape.DIGEST else ANY_ID,
                    scope=scope,
                    uid=subject.uid if shape & Shape.UID else ANY_OWNER,
                    gid=subject.gid if shape & Shape.GID else ANY_OWNER,
                )
                rule = self._rules.get(key)
                if rule is not None:
                    return rule
        return None


def normalised(family: int, address: int) -> tuple[int, int]:
    """One form for every address: IPv4-mapped is IPv4, and "any" is loopback, as in the kernel."""
    if family == 6 and address >> 32 == _MAPPED:
        family, address = 4, address & 0xFFFFFFFF
    if address == 0:
        return (4, _LOOPBACK4) if family == 4 else (6, 1)
    return family, address


def decide(  # noqa: PLR0917 - the five parts of a flow, in the order everybody says them
    policy: Tables | PolicyIndex,
    licenses: Mapping[int, LicenseState],
    subject: Subject,
    family: int,
    address: int,
    protocol: Protocol,
    port: int,
    direction: Direction | str = Direction.OUT,
    *,
    enforcing: bool = True,
    break_glass: bool = False,
) -> Decision:
    """What becomes of one use of the network.

    `licenses` has the state of each license by its number; a number that is not there is a
    license that was removed. `enforcing` is the agent's own mode: without it, nothing is
    refused whatever the resource's mode.
    """
    index = policy if isinstance(policy, PolicyIndex) else PolicyIndex(policy)
    class_number: int | None = SERVICE_CLASS
    if direction == Direction.OUT:
        class_number = index.class_of(*normalised(family, address))
    entry = None
    if class_number is not None:
        entry = index.port_of(class_number, protocol, 0 if protocol in _PORTLESS else port)
    if entry is None:
        return Decision(Verdict.NONE, Reason.NO_RESOURCE)
    if entry.resource == FAILSAFE_RESOURCE:
        return Decision(Verdict.NONE, Reason.FAILSAFE, entry.resource)
    rule = index.rule_of(entry.resource, subject)
    reason, license_number = (Reason.NO_BINDING, 0) if rule is None else judge_rule(rule, licenses)
    if reason is Reason.LICENSED:
        verdict = Verdict.ALLOW
    elif not enforcing or not entry.flags & PortFlag.ENFORCE:
        verdict = Verdict.SHADOW
    elif break_glass:
        verdict, reason = Verdict.ALLOW, Reason.BREAK_GLASS
    else:
        verdict = Verdict.DENY
    return Decision(verdict, reason, entry.resource, rule, license_number)


def judge_rule(rule: Rule, licenses: Mapping[int, LicenseState]) -> tuple[Reason, int]:
    """The reason a rule leads to and the license it rests on: the first one that is valid.

    With none valid, the first one says why. A rule without licenses is one whose
    entitlement cannot be honoured.
    """
    if not rule.licenses:
        return Reason.CONDITION, 0
    for number in rule.licenses:
        if licenses.get(number) is LicenseState.VALID:
            return Reason.LICENSED, number
    first = licenses.get(rule.licenses[0])
    return (first.reason, rule.licenses[0]) if first is not None else (Reason.NO_BINDING, 0)
