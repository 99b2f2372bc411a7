# SPDX-License-Identifier: Apache-2.0
"""Policy and licenses in, the kernel's tables out, or every problem at once.

Time, revocation and the host's own labels play no part here: they change by the minute, and
are the state of a license in the kernel's tables (`licagent.domain.license`), not of the
policy. So a policy compiles the same before and after a license ends. Only where conditions take
away some of a license's entitlements, and leave others, do its rules change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from licagent.domain.failsafe import FailsafeEntry, network_claims
from licagent.domain.license_view import LicenseView, license_view, not_granted, unreached
from licagent.domain.networks import (
    ClassTable,
    TooManyPortsError,
    flatten,
    service_table,
)
from licagent.domain.policy_model import (
    ENFORCED_KINDS,
    Binding,
    Policy,
    Resource,
    ResourceKind,
)
from licagent.domain.problem import Names, PolicyError, PolicyProblem, shown
from licagent.domain.resource_claims import destination_claims, service_claims, too_many_ports
from licagent.domain.rules import AccountLookup, Folder, FoldError, Numbering, Who, names_of
from licagent.domain.selector import SelectorError, parse
from licagent.domain.tables import (
    MAX_LICENSES_PER_RULE,
    SERVICE_CLASS,
    ResourceEntry,
    Rule,
    RuleKey,
    Shape,
    Tables,
)
from lictoken.claims import License

RULES_MAX: Final = 1_000_000
"""Rules of one policy; bindings whose licenses entitle many resources multiply."""


def compile_policy(
    policy: Policy,
    licenses: Mapping[str, License],
    numbering: Numbering,
    users: AccountLookup,
    failsafe: Sequence[FailsafeEntry] = (),
    *,
    groups: AccountLookup = lambda _name: None,
    lenient: bool = False,
    tolerated: Callable[[PolicyProblem], bool] = lambda _problem: False,
    withheld: AbstractSet[tuple[str, str]] = frozenset(),
) -> Tables:
    """The tables of `policy`, with `licenses` by their id (jti), whatever their state.

    Raises PolicyError with every problem found. An entitlement that this version cannot
    honour (`license.refusals`) leaves its rules without that license: they still match, so
    that no wider binding takes their place, and with none left deny with Reason.CONDITION. So do
    those in `withheld`, (license id, resource): their conditions do not hold now.

    `lenient` is for a policy that was good once and is to be enforced although a license, a
    user or an entitlement has gone meanwhile: what is wrong then grants nothing, and every
    resource is still enforced. `tolerated` says it of single problems: a policy for many hosts
    binds licenses and resources that this one does not have (`PolicyProblem.absent`).
    """
    compiler = PolicyCompiler(policy, licenses, Folder(numbering, users, groups), withheld)
    return compiler.compile(failsafe, lenient=lenient, tolerated=tolerated)


class Grant(NamedTuple):
    """One binding that leads to a rule."""

    binding: Binding
    license: License
    honoured: bool  # whether this version can honour the entitlement, and its conditions hold
    selectors: tuple[str, ...]


@dataclass(slots=True)
class PolicyCompiler:
    """One compilation, and what it worked out on the way."""

    policy: Policy
    licenses: Mapping[str, License]
    folder: Folder
    withheld: AbstractSet[tuple[str, str]]
    kinds: Collection[ResourceKind] = ENFORCED_KINDS
    """Kinds of resources whose grants are noted."""
    problems: list[PolicyProblem] = field(default_factory=list)
    _resources: dict[str, tuple[int, Resource]] = field(default_factory=dict)
    _views: dict[str, LicenseView | None] = field(default_factory=dict)
    grants: defaultdict[tuple[int, ...], list[Grant]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _known: Names | None = None
    _shapes: set[Shape] = field(default_factory=set)
    _reached: set[str] = field(default_factory=set)

    def compile(
        self,
        failsafe: Sequence[FailsafeEntry],
        *,
        lenient: bool,
        tolerated: Callable[[PolicyProblem], bool],
    ) -> Tables:
        """The tables, as `compile_policy` describes it."""
        self.number_resources()
        resources = self._resources.values()
        self._check_license_numbers()
        self._bind_all()
        self.problems += unreached(resources, self._reached, self.licenses)
        rules = self._rules()
        classes = ClassTable()
        networks = []
        try:
            networks = flatten(destination_claims(resources), network_claims(failsafe), classes)
            services = service_table(service_claims(resources), _inbound(failsafe))
            classes.write(SERVICE_CLASS, services)
        except TooManyPortsError:
            self.problems.append(too_many_ports(self.policy.resources))
            raise PolicyError(self.problems) from None  # there are no tables to enforce
        if not lenient and (left := [each for each in self.problems if not tolerated(each)]):
            raise PolicyError(left)
        return Tables(
            networks=tuple(networks),
            ports=tuple(classes.ports),
            rules=tuple(rules),
            shapes=tuple(sorted(self._shapes, reverse=True)),
            scopes=tuple(self.folder.scopes[number] for number in sorted(self.folder.scopes)),
            paths=names_of(self.folder.paths),
            digests=names_of(self.folder.digests),
            resources=tuple(
                ResourceEntry(number, entry.name, entry.kind.value, entry.enforce, entry.source)
                for number, entry in resources
            ),
            withheld=frozenset(self.withheld),
        )

    def number_resources(self) -> None:
        """Give each resource its number, before bindings refer to it."""
        for resource in self.policy.resources:
            number = self.folder.numbering.number("resource", resource.name)
            self._resources[resource.name] = (number, resource)

    def _check_license_numbers(self) -> None:
        """Two licenses of one number would end, and be revoked, together."""
        used = {binding.license: binding for binding in reversed(self.policy.bindings)}
        numbers: dict[int, str] = {}
        for name, entry in self.licenses.items():
            other = numbers.setdefault(entry.number, name)
            binding = used.get(name) or used.get(other)
            if other != name and binding is not None:
                self._problem(
                    binding,
                    "license",
                    f"the licenses {shown(other)} and {shown(name)} both have the number "
                    f"{entry.number}",
                    "have one of them issued again: numbers are unique in the fleet",
                )

    def _bind_all(self) -> None:
        limit = RULES_MAX
        for binding in self.policy.bindings:
            limit -= len(self.bind(binding))
            if limit < 0:
                message = f"more than {RULES_MAX} rules"
                hint = "name fewer resources in each binding, or merge resources"
                self._problem(binding, "", message, hint)
                return

    def bind(self, binding: Binding) -> list[tuple[int, ...]]:
        """Note what a binding grants; the keys of its rules. Mistakes become problems."""
        license_ = self.licenses.get(binding.license)
        if license_ is None:
            if self._known is None:
                self._known = Names(self.licenses)
            hint = self._known.suggest(binding.license) or "add it: licagent license add FILE"
            message = f"no license {shown(binding.license)} is known here"
            self._problem(binding, "license", message, hint, absent=True)
            return []
        view = self._view(binding, license_)
        if view is None:
            return []
        try:
            who = self.folder.fold((*binding.selectors, *view.selectors))
        except FoldError as error:
            self._problem(binding, "selectors", error.message, error.suggestion)
            who = None
        return self._bind(binding, view, who)

    def _view(self, binding: Binding, license_: License) -> LicenseView | None:
        if binding.license in self._views:
            return self._views[binding.license]
        selectors = []
        view = None
        for text in license_.selectors:
            try:
                selectors.append(parse(text))
            except SelectorError as error:
                message = f"license {shown(license_.jti)} has a selector not understood here: "
                self._problem(binding, "license", message + str(error), "have it issued again")
                break
        else:
            view = license_view(license_, tuple(selectors), self._resources, self.withheld)
        self._views[binding.license] = view
        return view

    def _bind(self, binding: Binding, view: LicenseView, who: Who | None) -> list[tuple[int, ...]]:
        """Note what `binding` grants, to nobody if `who` is None; the keys of its rules."""
        wanted: Iterable[str] = view.grants
        if binding.resources is not None:
            wanted = dict.fromkeys(binding.resources)
            for name in wanted:
                if name not in view.grants:
                    problem = not_granted(view, name, self._resources)
                    self._problem(binding, "resources", *problem, absent=True)
        selectors = (*map(str, binding.selectors), *map(str, view.selectors))
        keys: list[tuple[int, ...]] = []
        for name in wanted:
            honoured = view.grants.get(name)
            if honoured is None:
                continue
            self._reached.add(name)
            number, resource = self._resources[name]
            if who is None or resource.kind not in self.kinds:
                continue
            grant = Grant(binding, view.license, honoured, selectors)
            key = (number, *who.key)
            self.grants[key].append(grant)
            self._shapes.add(who.shape)
            keys.append(key)
        return keys

    def _rules(self) -> list[Rule]:
        return [
            self.rule(number, key, grants)
            for number, (key, grants) in enumerate(self.grants.items(), 1)
        ]

    def rule(self, number: int, key: tuple[int, ...], grants: Sequence[Grant]) -> Rule:
        """The rule that grants with one key come to, in the policy's order."""
        first = grants[0]
        licenses: tuple[int, ...]
        if len(grants) == 1:
            licenses = (first.license.number,) if first.honoured else ()
            name = first.binding.name
        else:
            licenses = self._alternatives(grants)
            name = ", ".join(dict.fromkeys(grant.binding.name for grant in grants))
        return Rule(number, RuleKey(*key), licenses, name, first.selectors, first.binding.source)

    def _alternatives(self, grants: Sequence[Grant]) -> tuple[int, ...]:
        """The licenses of one rule: the one that lasts longest first."""
        honoured = {grant.license.jti: grant for grant in grants if grant.honoured}
        if len(honoured) > MAX_LICENSES_PER_RULE:
            extra = list(honoured.values())[MAX_LICENSES_PER_RULE]
            self._problem(
                extra.binding,
                "license",
                f"{len(honoured)} licenses are bound to the same selectors and resource, "
                f"at most {MAX_LICENSES_PER_RULE} can be: {', '.join(list(honoured)[:8])}",
                "remove the bindings of those that have ended",
            )
        ordered = sorted(
            honoured.values(), key=lambda grant: (-grant.license.expires_at_s, grant.license.number)
        )
        return tuple(grant.license.number for grant in ordered[:MAX_LICENSES_PER_RULE])

    def _problem(
        self, binding: Binding, key: str, message: str, suggestion: str, *, absent: bool = False
    ) -> None:
        place = f"binding.{key}" if key else "binding"
        self.problems.append(
            PolicyProblem(binding.file, binding.line, place, message, suggestion, absent)
        )


def _inbound(failsafe: Iterable[FailsafeEntry]) -> Iterator[FailsafeEntry]:
    return (entry for entry in failsafe if entry.direction == "in")
