# SPDX-License-Identifier: Apache-2.0
"""Which rules may decide a recorded use, if it came now.

They are looked up as the kernel does (licagent.domain.decision). Where a record does not show
what a rule asks for, the rules of every answer that is possible are candidates.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from licagent.daemon.shadow.uses import Actor
from licagent.domain.decision import PolicyIndex, Subject
from licagent.domain.policy_model import ResourceKind
from licagent.domain.tables import ANY_ID, ANY_OWNER, Protocol, Rule, Scope, ScopeKind, Tables
from licagent.host.cgroup_names import SCOPE_ORDER, container_id, matches, parts_of
from licagent.kernel.numbers import MAX_SCOPES

OTHER_FAMILIES: Final = "other-families"
"""What events name where sockets of other families are no resource (AF_PACKET, AF_VSOCK...)."""

_VARIANTS_MAX: Final = 512
"""Answers that are looked up for one use; with more open, it is not known."""
_ASKS_SHOWN: Final = 3
_NOBODY: Final = ANY_OWNER - 1
"""A uid and gid that no rule names."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rules that may decide a use; None among them: none of the rules."""

    rules: tuple[Rule | None, ...] = ()
    open: tuple[str, ...] = ()  # what the record does not show
    why_not: str = ""  # why there is nothing to decide by
    resource: str = ""  # that is decided on


@dataclass(slots=True)
class _Named:
    """What the rules of one resource ask for."""

    name: str
    number: int
    paths: dict[int, str | None] = field(default_factory=dict)
    """As the kernel finds them, without links; None where that is not known."""
    by_file: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Paths by the name of the file."""
    digests: defaultdict[tuple[int, int], set[int]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """By path and uid of their rules."""
    scopes: set[int] = field(default_factory=set)
    uids: set[int] = field(default_factory=set)
    gids: set[int] = field(default_factory=set)
    asks: list[str] = field(default_factory=list)

    def note(self, rule: Rule, paths: Mapping[int, str], resolved: Mapping[str, str]) -> None:
        key = rule.key
        if key.path != ANY_ID and key.path not in self.paths:
            written = paths.get(key.path, "")
            found = self.paths[key.path] = resolved.get(written)
            self.by_file[_file_of(found or written)].append(key.path)
        if key.digest != ANY_ID:
            self.digests[key.path, key.uid].add(key.digest)
        for value, known, wildcard in (
            (key.scope, self.scopes, ANY_ID),
            (key.uid, self.uids, ANY_OWNER),
            (key.gid, self.gids, ANY_OWNER),
        ):
            if value != wildcard:
                known.add(value)
        if len(self.asks) < _ASKS_SHOWN:
            self.asks.append(f"binding {rule.binding} asks for {' and '.join(rule.selectors)}")


class RuleFinder:
    """Which rules may decide a use. Of one policy; may be used on any thread."""

    def __init__(self, tables: Tables, resolved: Mapping[str, str]) -> None:
        """`resolved` has the policy's paths without links, as far as they are known."""
        self._index = PolicyIndex(tables)
        paths = dict(tables.paths)
        self._named = {each.name: _Named(each.name, each.number) for each in tables.resources}
        self._by_number = {each.number: each for each in self._named.values()}
        self._has_networks = any(each.kind == ResourceKind.NETWORK for each in tables.resources)
        for rule in tables.rules:
            self._by_number[rule.key.resource].note(rule, paths, resolved)
        self._scopes: defaultdict[tuple[ScopeKind, str], list[Scope]] = defaultdict(list)
        for scope in tables.scopes:
            self._scopes[_handle(scope)].append(scope)
        self._of_cgroup: dict[str, tuple[int, ...]] = {}

    def find(self, actor: Actor) -> Candidates:
        """The rules that may decide what `actor` does."""
        named = self._named.get(actor.resource)
        if named is None and actor.resource == OTHER_FAMILIES:
            if not self._has_networks:
                return Candidates(why_not="the policy has no network now")
            named = self._of_other_families()
            if named is None:
                return Candidates((None,), resource=actor.resource)
        if named is None:
            return Candidates(
                why_not="the policy has no such resource now; another one may cover the same place"
            )
        unknown: list[str] = []
        paths = self._paths(actor, named, unknown)
        uids = _owners(actor.uid, named.uids, "the user", unknown)
        gids = _owners(actor.gid, named.gids, "the group", unknown)
        scopes = self._scopes_of(actor, named, unknown)
        digests = _digests(named, paths, uids, unknown)
        if len(paths) * len(digests) * len(scopes) * len(uids) * len(gids) > _VARIANTS_MAX:
            return Candidates(open=tuple(unknown), why_not=not_shown(unknown))
        rules: dict[int, Rule | None] = {}
        for path, digest, scope, uid, gid in itertools.product(paths, digests, scopes, uids, gids):
            subject = Subject(path, digest, scope, uid, gid)
            rule = self._index.rule_of(named.number, subject)
            rules[rule.number if rule else 0] = rule
        return Candidates(tuple(rules.values()), tuple(unknown), resource=named.name)

    def _of_other_families(self) -> _Named | None:
        """The resource that names sockets of other families, as lsm_socket_create asks for it."""
        for family in (4, 6):
            place = self._index.class_of(family, 0)  # stands for every network
            entry = None if place is None else self._index.port_of(place, Protocol.OTHER, 0)
            if entry is not None:
                return self._by_number.get(entry.resource)
        return None

    def asks(self, resource: str) -> Sequence[str]:
        """What the first bindings to a resource ask for."""
        named = self._named.get(resource)
        return named.asks if named else ()

    def _paths(self, actor: Actor, named: _Named, unknown: list[str]) -> list[int]:
        """The selectors that the executable may be recognised by; 0 is none of them.

        The kernel knows a file by its folder and its name, a record the path that the process
        saw. The same name in another folder may be the same file (/bin is /usr/bin), and in a
        container the same path is another.
        """
        if not named.paths:
            return [ANY_ID]
        if actor.executable is None:
            unknown.append("the executable, which had ended")
            return [ANY_ID, *_some(named.paths)]
        path = actor.executable.removesuffix(" (deleted)")
        alike = named.by_file.get(_file_of(path), [])
        if not alike:
            return [ANY_ID]
        is_exact = path == actor.executable and actor.container is None
        exact = [each for each in alike if is_exact and named.paths[each] == path]
        if exact == alike:
            return exact
        unknown.append(f"which file {actor.executable} was")
        return alike if exact else [ANY_ID, *alike]

    def _scopes_of(self, actor: Actor, named: _Named, unknown: list[str]) -> list[tuple[int, ...]]:
        if not named.scopes:
            return [()]
        if actor.cgroup is not None:
            return [self._numbers(actor.cgroup)]
        unknown.append("the cgroup, which was gone")
        # One place at a time will do: whichever rule wins in several wins in its own.
        return [(), *((each,) for each in _some(named.scopes))]

    def _numbers(self, cgroup: str) -> tuple[int, ...]:
        """The scopes of a cgroup, the deepest first, as the kernel is told them."""
        found = self._of_cgroup.get(cgroup)
        if found is None:
            parts = parts_of(cgroup)
            numbers: list[int] = []
            for depth in range(len(parts), 0, -1):
                path = "/" + "/".join(parts[:depth])
                here = [each for each in self._candidates(path) if matches(each, path)]
                here.sort(key=lambda each: (SCOPE_ORDER[each.kind], each.number))
                numbers += [each.number for each in here]
            found = self._of_cgroup[cgroup] = tuple(numbers[:MAX_SCOPES])
        return found

    def _candidates(self, path: str) -> Iterator[Scope]:
        base = path.rpartition("/")[2]
        container = container_id(base)
        handles = {
            (ScopeKind.PATH, path),
            (ScopeKind.UNIT, base),
            (ScopeKind.UNIT, base.removeprefix("_")),
            (ScopeKind.CONTAINER, (container or "")[:12]),
        }
        for handle in handles:
            yield from self._scopes.get(handle, ())


def _handle(scope: Scope) -> tuple[ScopeKind, str]:
    if scope.kind is ScopeKind.PATH:
        return scope.kind, "/" + "/".join(parts_of(scope.name))
    return scope.kind, scope.name if scope.kind is ScopeKind.UNIT else scope.name[:12]


def _owners(value: int | None, named: set[int], word: str, unknown: list[str]) -> list[int]:
    if value is not None or not named:
        return [_NOBODY if value is None else value]
    unknown.append(word)
    return [_NOBODY, *_some(named)]


def _digests(
    named: _Named, paths: Iterable[int], uids: Iterable[int], unknown: list[str]
) -> list[int]:
    """Contents that rules ask of such an executable, of such a user; 0 is none of them."""
    found: set[int] = set()
    if named.digests:
        for place in itertools.product({ANY_ID, *paths}, {ANY_OWNER, *uids}):
            found |= named.digests.get(place, set())
    if found:
        unknown.append("the executable's content (unix:sha256)")
    return [ANY_ID, *_some(found)]


def _some(numbers: Iterable[int]) -> Iterator[int]:
    """No more than can be looked up: one more is too many all the same."""
    return itertools.islice(numbers, _VARIANTS_MAX)


def _file_of(path: str) -> str:
    return path.rpartition("/")[2]


def not_shown(unknown: Sequence[str]) -> str:
    """What a record does not show, as a sentence."""
    return f"the record does not show {', nor '.join(unknown)}"
