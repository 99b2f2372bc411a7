# SPDX-License-Identifier: Apache-2.0
"""The rules of a compiled policy, kept so that single bindings can be exchanged.

Of 100,000 bindings one changes: its old grants are taken out of the rules they led to, its new
ones are put in, and only these rules are made again. Resources, networks, ports and licenses are
those of the compilation it grew from; where they change, the policy is compiled anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from licagent.domain.compiler import RULES_MAX, Grant, PolicyCompiler
from licagent.domain.policy_documents import CONTROL_PLANE
from licagent.domain.policy_model import Binding
from licagent.domain.problem import PolicyError, PolicyProblem
from licagent.domain.rules import names_of
from licagent.domain.tables import Rule, Shape, Tables

Key = tuple[int, ...]  # resource, path, digest, scope, uid, gid

CHANGES_MAX: Final = 1024
"""More rules at once than this are cheaper to write as a whole policy."""

_LICENSES_MAX: Final = 4096
"""As many licenses get a new epoch by one change at the most."""


@dataclass(frozen=True, slots=True)
class RuleChange:
    """How one set of rules differs from another, over the same resources."""

    added: tuple[Rule, ...] = ()
    changed: tuple[tuple[Rule, Rule], ...] = ()  # before, after; of one key
    removed: tuple[Rule, ...] = ()
    resources: frozenset[int] = frozenset()  # of all of these
    licenses: frozenset[int] = frozenset()  # that sockets on these resources may have now
    new_shapes: bool = False

    def __len__(self) -> int:
        return len(self.added) + len(self.changed) + len(self.removed)

    @property
    def fits_in_place(self) -> bool:
        """Whether the kernel's tables can be changed rule by rule; `amend_order` says why."""
        return (
            len(self) <= CHANGES_MAX
            and len(self.licenses) <= _LICENSES_MAX
            and not self.new_shapes
            and _has_order(self.added)
            and _has_order(self.removed)
        )


def amend_order(change: RuleChange) -> tuple[list[Rule], list[Rule]]:
    """The rules to write, in that order, and then those to remove, in that order.

    Every decision taken in between is one that the old policy takes, or the new one. A decision
    is the most specific rule that matches. While rules are added, most specific first, the
    tables hold the old rules and the most specific new ones: if a new rule is found, no new rule
    that is still missing is more specific, so the new policy finds it too; if an old one is
    found, no old rule is more specific, so the old policy finds it too. The same holds backwards
    while rules are removed, least specific first. A rule that changes is replaced in one step.

    Rules that differ in nothing but their place in the cgroup tree have no order here (the
    deeper one wins, which only the kernel knows): `RuleChange.fits_in_place` leaves them out.
    """
    added = sorted(change.added, key=lambda rule: -rule.key.shape)
    changed = [after for _before, after in change.changed]
    return added + changed, sorted(change.removed, key=lambda rule: int(rule.key.shape))


class RuleBook:
    """The rules of one compilation and its amendments."""

    def __init__(
        self,
        compiler: PolicyCompiler,
        tables: Tables,
        tolerated: Callable[[PolicyProblem], bool],
    ) -> None:
        """`compiler` has compiled `tables`; it belongs to the book from now on."""
        self.tables = tables
        """What the book stands for. Another object than the one in force: it is out of date."""
        self._compiler = compiler
        self._tolerated = tolerated
        self._rules: dict[Key, Rule] = dict(zip(compiler.grants, tables.rules, strict=True))
        self._next = len(tables.rules) + 1
        self._names = {each.name.lower(): each.name for each in compiler.policy.bindings}
        self._licenses: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for rule in tables.rules:
            self._licenses[rule.key.resource].update(rule.licenses)

    def exchange(
        self, old: Sequence[Binding], new: Sequence[Binding]
    ) -> tuple[Tables, RuleChange] | None:
        """The tables with `new` bindings in place of `old` ones.

        None where it cannot be said (a name that two would have): compile instead. Raises
        PolicyError with every problem found. In both cases the book has not changed.
        """
        compiler = self._compiler
        compiler.problems.clear()
        before: dict[Key, list[Grant]] = {}
        if self._is_clash(old, new):
            return None  # the compilation names both
        if not self._take_out(old, before):
            self._put_back(before)
            return None
        compiler.problems.clear()  # of the old ones, which are no longer anybody's business
        for binding in new:
            for key in compiler.bind(binding):
                # `bind` has put the grant behind those that were there.
                before.setdefault(key, compiler.grants[key][:-1])
        change = self._change(before)
        problems = [each for each in compiler.problems if not self._tolerated(each)]
        if problems:
            self._put_back(before)
            raise PolicyError(problems)
        for each in old:
            self._names.pop(each.name.lower(), None)
        self._names.update((each.name.lower(), each.name) for each in new)
        self._keep(change)
        return self.tables, change

    def _is_clash(self, old: Iterable[Binding], new: Iterable[Binding]) -> bool:
        """Whether a new name is, but for case, another binding's."""
        gone = {each.name.lower() for each in old}
        taken: set[str] = set()
        for each in new:
            name = each.name.lower()
            if name in taken or (name in self._names and name not in gone):
                return True
            taken.add(name)
        return False

    def _take_out(self, old: Iterable[Binding], before: dict[Key, list[Grant]]) -> bool:
        """Remove the grants of bindings; False if one has none where it should have some."""
        grants = self._compiler.grants
        for binding in old:
            # Binding it once more says under which keys it stands.
            for key in self._compiler.bind(binding):
                held = grants[key][:-1]
                before.setdefault(key, held)
                left = [each for each in held if each.binding.name != binding.name]
                if len(left) == len(held):
                    return False
                grants[key] = left
        return True

    def _put_back(self, before: dict[Key, list[Grant]]) -> None:
        for key, grants in before.items():
            if grants:
                self._compiler.grants[key] = grants
            else:
                self._compiler.grants.pop(key, None)

    def _change(self, before: dict[Key, list[Grant]]) -> RuleChange:
        compiler = self._compiler
        added, changed, removed = [], [], []
        number = self._next
        for key in before:
            grants = compiler.grants.get(key)
            held = self._rules.get(key)
            if not grants:
                if held is not None:
                    removed.append(held)
                continue
            grants.sort(key=_place)
            rule = compiler.rule(held.number if held else number, key, grants)
            if held is None:
                added.append(rule)
                number += 1
            elif held != rule:
                changed.append((held, rule))
        if len(self._rules) + len(added) - len(removed) > RULES_MAX:
            compiler.problems.append(PolicyProblem(CONTROL_PLANE, 0, "", _TOO_MANY))
        touched = [*added, *removed, *(after for _, after in changed)]
        resources = frozenset(rule.key.resource for rule in touched)
        licenses = {
            number
            for resource in resources
            for number, count in self._licenses[resource].items()
            if count
        }
        licenses.update(number for rule in touched for number in rule.licenses)
        shapes: set[Shape] = {rule.key.shape for rule in added}
        return RuleChange(
            tuple(added),
            tuple(changed),
            tuple(removed),
            resources,
            frozenset(licenses),
            not shapes <= set(self.tables.shapes),
        )

    def _keep(self, change: RuleChange) -> None:
        compiler = self._compiler
        for rule in change.removed:
            key = _key(rule)
            del self._rules[key]
            compiler.grants.pop(key, None)
            self._licenses[rule.key.resource].subtract(rule.licenses)
        for before, after in change.changed:
            self._rules[_key(after)] = after
            self._licenses[after.key.resource].subtract(before.licenses)
            self._licenses[after.key.resource].update(after.licenses)
        for rule in change.added:
            self._rules[_key(rule)] = rule
            self._licenses[rule.key.resource].update(rule.licenses)
        self._next += len(change.added)
        folder, tables = compiler.folder, self.tables
        shapes = {*tables.shapes, *(rule.key.shape for rule in change.added)}
        # Names that no rule has any more stay until the next compilation: they match nothing.
        self.tables = replace(
            tables,
            rules=tuple(self._rules.values()),
            shapes=tuple(sorted(shapes, reverse=True)),
            scopes=(
                tables.scopes
                if len(folder.scopes) == len(tables.scopes)
                else tuple(folder.scopes[number] for number in sorted(folder.scopes))
            ),
            paths=(
                tables.paths if len(folder.paths) == len(tables.paths) else names_of(folder.paths)
            ),
            digests=(
                tables.digests
                if len(folder.digests) == len(tables.digests)
                else names_of(folder.digests)
            ),
        )


_TOO_MANY: Final = f"more than {RULES_MAX} rules: name fewer resources in each binding"


def _key(rule: Rule) -> Key:
    key = rule.key
    return key.resource, key.path, key.digest, key.scope, key.uid, key.gid


def _place(grant: Grant) -> tuple[int, str]:
    """Where a grant stands among those of its rule: as in a policy that is compiled whole.

    The host's own come first, in the order of their files (sorting keeps it), then the control
    plane's by name, then what `licagent run` needs.
    """
    file = grant.binding.file
    if file.startswith(CONTROL_PLANE):
        return 1, grant.binding.name
    return (2, grant.binding.name) if not grant.binding.line else (0, "")


def _has_order(rules: Sequence[Rule]) -> bool:
    """Whether no two rules differ in their place in the cgroup tree alone."""
    seen = set()
    for rule in rules:
        if not rule.key.shape & Shape.SCOPE:
            continue
        rest = replace(rule.key, scope=1)
        if rest in seen:
            return False
        seen.add(rest)
    return True
