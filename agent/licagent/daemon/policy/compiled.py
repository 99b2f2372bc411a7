# SPDX-License-Identifier: Apache-2.0
"""A policy that passed every check: what it says, its tables, and what it was compiled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from licagent.daemon.control.managed import Managed
from licagent.domain.config import FailsafeSetting
from licagent.domain.decision import PolicyIndex
from licagent.domain.policy import Policy
from licagent.domain.rulebook import RuleBook, RuleChange
from licagent.domain.tables import ResourceEntry, Tables

Texts = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a policy was compiled in, apart from its bindings."""

    texts: tuple[tuple[str, str], ...]
    resolvers: tuple[str, ...]
    reachable: tuple[FailsafeSetting, ...]
    run_licenses: frozenset[str]
    withheld: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, eq=False)
class Amendment:
    """A compiled policy that grew from another one, and how their rules differ."""

    base: Tables
    change: RuleChange


@dataclass(frozen=True, eq=False)
class Compiled:
    """A policy that passed every check, and its tables."""

    texts: tuple[tuple[str, str], ...]  # of the host's own files
    local: Policy  # what they say
    managed: Managed  # what the control plane gave
    tables: Tables
    frame: Frame
    book: RuleBook | None = None
    """Of a large policy: for the next change. Out of date where its tables are others."""
    amendment: Amendment | None = None

    @cached_property
    def policy(self) -> Policy:
        """All of it; made when somebody asks, for it may have 100,000 bindings."""
        managed = self.managed.policy
        return Policy(
            self.local.resources + managed.resources, self.local.bindings + managed.bindings
        )

    @cached_property
    def index(self) -> PolicyIndex:
        """Its tables for look-ups; made when somebody asks: 5 MB for 100,000 rules."""
        return PolicyIndex(self.tables)

    @property
    def amounts(self) -> tuple[int, int]:
        """Resources and bindings."""
        return (
            len(self.local.resources) + len(self.managed.resources),
            len(self.local.bindings) + len(self.managed.bindings),
        )

    def resource(self, number: int) -> ResourceEntry | None:
        """The resource of a number."""
        return next((entry for entry in self.tables.resources if entry.number == number), None)
