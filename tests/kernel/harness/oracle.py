# SPDX-License-Identifier: Apache-2.0
"""The pure decision beside the kernel's: the same policy compiled here, the same subjects."""

from __future__ import annotations

import errno
import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from licagent.domain.compiler import compile_policy
from licagent.domain.decision import Decision, Direction, PolicyIndex, Subject, decide
from licagent.domain.failsafe import FailsafeEntry
from licagent.domain.license import LicenseState
from licagent.domain.policy import parse_policy
from licagent.domain.reason import REASON_ERRNO, Reason, Verdict
from licagent.domain.tables import Protocol, ScopeKind
from licagent.host.cgroup_names import matches
from lictoken.claims import License

PASSES: Final = "passes"
_REFUSALS: Final = {number: errno.errorcode[number] for number in REASON_ERRNO.values()}
_SCOPE_ORDER: Final = (ScopeKind.PATH, ScopeKind.UNIT, ScopeKind.CONTAINER)


@dataclass(frozen=True, slots=True)
class Who:
    """A process of the test: what the kernel knows of it."""

    program: Path
    cgroup: str
    """Its path below the agent's root."""
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Flow:
    """One use of the network, as dial.c does it."""

    what: str
    """connect-udp, connect-tcp, connect-icmp, bind-udp or bind-tcp."""
    address: str
    port: int

    @property
    def command(self) -> str:
        """What dial is told."""
        return f"use {self.what} {self.address} {self.port}"


def outcome(number: int) -> str:
    """What an errno says of the decision: other refusals than ours are none of it."""
    return _REFUSALS.get(number, PASSES) if number != errno.EPERM else "EPERM"


@dataclass(slots=True)
class Numbers:
    """Numbers for names, as the daemon's own numbering gives them: any will do."""

    known: dict[tuple[str, str], int] = field(default_factory=dict)

    def number(self, space: str, name: str) -> int:
        """The number of a name."""
        return self.known.setdefault((space, name), len(self.known) + 1)


Count = tuple[str | None, str | None, str, str]
"""License, resource, verdict, reason: a row of the counters."""


class Oracle:
    """One policy and who may do what by it."""

    def __init__(
        self,
        text: str,
        licenses: Mapping[str, License],
        states: Mapping[str, LicenseState],
        failsafe: Sequence[FailsafeEntry],
    ) -> None:
        """Raises PolicyError as the daemon does."""
        policy = parse_policy([("test.toml", text)], known_licenses=licenses.keys())
        self.tables = compile_policy(policy, licenses, Numbers(), lambda _name: None, failsafe)
        self._index = PolicyIndex(self.tables)
        self._states = {licenses[jti].number: state for jti, state in states.items()}
        self._jti = {entry.number: jti for jti, entry in licenses.items()}
        self._resource = {entry.number: entry.name for entry in self.tables.resources}

    def subject(self, who: Who) -> Subject:
        """A process in the numbers of this policy."""
        digest = hashlib.sha256(who.program.read_bytes()).hexdigest()
        at, scopes = who.cgroup, []
        while True:
            for kind in _SCOPE_ORDER:
                named = [scope for scope in self.tables.scopes if scope.kind is kind]
                scopes += [scope.number for scope in named if matches(scope, at)]
            if at == "/":
                break
            at = at.rpartition("/")[0] or "/"
        return Subject(
            path=next((n for n, path in self.tables.paths if path == str(who.program)), 0),
            digest=next((n for n, text in self.tables.digests if text == digest), 0),
            scopes=tuple(scopes),
            uid=who.uid,
            gid=who.gid,
        )

    def decide(self, subject: Subject, flow: Flow) -> Decision:
        """What should become of a flow."""
        address = ipaddress.ip_address(flow.address)
        way, _, protocol = flow.what.partition("-")
        return decide(
            self._index,
            self._states,
            subject,
            address.version,
            int(address),
            Protocol[protocol.upper()],
            flow.port,
            Direction.IN if way == "bind" else Direction.OUT,
        )

    def outcome(self, decision: Decision) -> str:
        """What a program should see."""
        if decision.verdict is not Verdict.DENY:
            return PASSES
        return errno.errorcode[REASON_ERRNO[decision.reason]]

    def count(self, decision: Decision) -> Count | None:
        """The counter that should move; None where no resource is touched."""
        if decision.verdict is Verdict.NONE:
            return None
        return (
            self._jti.get(decision.license),
            self._resource.get(decision.resource),
            decision.verdict.name.lower(),
            Reason(decision.reason).name.lower(),
        )
