# SPDX-License-Identifier: Apache-2.0
"""What use is charged to, as the policy in force at one moment has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from licagent.domain.attribution import Attribution, AttributionTable
from licagent.domain.decision import Subject
from licagent.domain.tables import (
    ANY_ID,
    ANY_OWNER,
    FAILSAFE_RESOURCE,
    Rule,
    RuleKey,
    Tables,
)
from licagent.host.cgroup_names import SCOPE_ORDER, matches
from licagent.kernel.numbers import MAX_SCOPES

_SCOPED_MAX: Final = 4096


class PolicyCharge:
    """`metering.owners.Charging`. Made on the kernel's thread, used on the metering thread.

    Nothing in it changes afterwards: it stands for the policy while one sheet was open.
    """

    def __init__(
        self,
        table: AttributionTable,
        valid: AbstractSet[str],
        tables: Tables,
        *,
        license_id: Callable[[int], str | None],
        resource_name: Callable[[int], str | None],
    ) -> None:
        """`valid`: ids of the licenses that are valid now; the two functions are look-ups."""
        self.table = table
        self.valid = valid
        self.tables = tables
        self._license_id = license_id
        self._resource_name = resource_name
        self._ordered = sorted(tables.scopes, key=lambda scope: SCOPE_ORDER[scope.kind])
        self._scopes: dict[str, tuple[int, ...]] = {}
        self._rules: Mapping[tuple[int, int], Sequence[Rule]] | None = None
        self._networks: dict[tuple[int, int], Attribution | None] = {}

    def compute(self, subject: Subject) -> Attribution:
        """See `Charging`."""
        return self.table.of(subject, self.valid)

    def footprint(self, resource: str, uid: int | None) -> Attribution:
        """See `Charging`."""
        if not resource:
            return Attribution()
        return self.table.of_footprint(resource, uid, self.valid)

    def scopes(self, cgroup: str) -> tuple[int, ...]:
        """See `Charging`. As `IdentityKeeper` writes them for the kernel."""
        if not self._ordered:
            return ()
        known = self._scopes.get(cgroup)
        if known is None:
            parent = cgroup.rsplit("/", 1)[0] or "/"
            above = self.scopes(parent) if cgroup != "/" else ()
            known = (*self._own(cgroup), *above)[:MAX_SCOPES]
            if len(self._scopes) >= _SCOPED_MAX:
                self._scopes.clear()
            self._scopes[cgroup] = known
        return known

    def _own(self, cgroup: str) -> list[int]:
        return [each.number for each in self._ordered if matches(each, cgroup)]

    def network(self, license_: int, resource: int, subject: Subject) -> Attribution:
        """See `Charging`."""
        if not resource or resource == FAILSAFE_RESOURCE:
            return Attribution()
        key = (license_, resource)
        if key in self._networks:
            found = self._networks[key]
            return found if found is not None else self._one_of_several(key, subject)
        found = self._networks[key] = self._only(key)
        return found if found is not None else self._one_of_several(key, subject)

    def _only(self, key: tuple[int, int]) -> Attribution | None:
        """What is the same for every subject; None where the binding depends on who it is."""
        names = {rule.binding for rule in self._candidates(key)}
        return self._charge(key, names.pop() if names else "") if len(names) < 2 else None

    def _one_of_several(self, key: tuple[int, int], subject: Subject) -> Attribution:
        fitting = [rule for rule in self._candidates(key) if _fits(rule.key, subject)]
        best = max(fitting, key=lambda rule: rule.key.shape, default=None)
        return self._charge(key, best.binding if best is not None else "")

    def _charge(self, key: tuple[int, int], binding: str) -> Attribution:
        license_, resource = key
        name = self._resource_name(resource) or f"number {resource}"
        if not license_:
            return Attribution("", name)
        return Attribution(self._license_id(license_) or f"number {license_}", name, binding)

    def _candidates(self, key: tuple[int, int]) -> Sequence[Rule]:
        if not key[0]:
            return ()
        if self._rules is None:
            rules: dict[tuple[int, int], list[Rule]] = {}
            for rule in self.tables.rules:
                for number in rule.licenses:
                    rules.setdefault((number, rule.key.resource), []).append(rule)
            self._rules = rules
        return self._rules.get(key, ())


def _fits(key: RuleKey, subject: Subject) -> bool:
    return (
        (key.path in (ANY_ID, subject.path))
        and key.digest in (ANY_ID, subject.digest)
        and (key.scope == ANY_ID or key.scope in subject.scopes)
        and key.uid in (ANY_OWNER, subject.uid)
        and key.gid in (ANY_OWNER, subject.gid)
    )
