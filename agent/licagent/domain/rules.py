# SPDX-License-Identifier: Apache-2.0
"""Bindings to rules: the selectors of a binding and of its license folded into one key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from licagent.domain.selector import Selector, SelectorKind
from licagent.domain.tables import ANY_ID, ANY_OWNER, Scope, ScopeKind, Shape

AccountLookup: TypeAlias = Callable[[str], int | None]
"""The number of an account by its name; None or LookupError where there is none."""


class Numbering(Protocol):
    """Numbers for names; the same name keeps its number for ever."""

    def number(self, space: str, name: str) -> int:
        """The number, 1 or more, of `name` in `space`: resource, scope, path or digest."""
        ...  # pragma: no cover


class FoldError(ValueError):
    """Selectors that cannot hold together, or name what does not exist."""

    def __init__(self, message: str, suggestion: str = "") -> None:
        self.message: Final = message
        self.suggestion: Final = suggestion
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Who:
    """The part of a rule's key that says who: the selectors folded together."""

    key: tuple[int, int, int, int, int]  # path, digest, scope, uid, gid
    shape: Shape


_SCOPE_KINDS: Final = {
    SelectorKind.UNIT: ScopeKind.UNIT,
    SelectorKind.SLICE: ScopeKind.UNIT,
    SelectorKind.CGROUP: ScopeKind.PATH,
    SelectorKind.CONTAINER: ScopeKind.CONTAINER,
}

_ATTRIBUTES: Final = {
    SelectorKind.PATH: "path",
    SelectorKind.SHA256: "digest",
    SelectorKind.UNIT: "scope",
    SelectorKind.SLICE: "scope",
    SelectorKind.CGROUP: "scope",
    SelectorKind.CONTAINER: "scope",
    SelectorKind.UID: "uid",
    SelectorKind.USER: "uid",
    SelectorKind.GID: "gid",
    SelectorKind.GROUP: "gid",
}


@dataclass(slots=True)
class Folder:
    """Folds selectors, looks up accounts once each, and collects what rules refer to."""

    numbering: Numbering
    users: AccountLookup
    groups: AccountLookup
    scopes: dict[int, Scope] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    _accounts: dict[Selector, int] = field(default_factory=dict)

    def fold(self, selectors: Iterable[Selector]) -> Who:
        """Who matches all of `selectors`; raises FoldError where nobody can, or no rule says it.

        A rule has room for one path, one digest, one scope, one user and one group. Two
        scopes are folded where one is known to lie in the other.
        """
        held: dict[str, Selector] = {}
        for selector in selectors:
            if selector.kind is SelectorKind.HOST:
                continue
            attribute = _ATTRIBUTES[selector.kind]
            other = held.get(attribute)
            if other is None or other == selector:
                held[attribute] = selector
            else:
                held[attribute] = self._together(attribute, other, selector)
        shape = Shape.HOST
        path = digest = scope = ANY_ID
        uid = gid = ANY_OWNER
        for attribute, selector in held.items():
            if attribute == "uid":
                uid = self._account(selector)
                shape |= Shape.UID
            elif attribute == "gid":
                gid = self._account(selector)
                shape |= Shape.GID
            elif attribute == "path":
                path = self.numbering.number("path", selector.value)
                self.paths[path] = selector.value
                shape |= Shape.PATH
            elif attribute == "digest":
                digest = self.numbering.number("digest", selector.value)
                self.digests[digest] = selector.value
                shape |= Shape.DIGEST
            else:
                scope = self._scope(selector)
                shape |= Shape.SCOPE
        return Who((path, digest, scope, uid, gid), shape)

    def _together(self, attribute: str, one: Selector, other: Selector) -> Selector:
        if attribute in ("uid", "gid"):
            if self._account(one) == self._account(other):
                return one
            word = "user" if attribute == "uid" else "group"
            raise FoldError(f"no process has the {word}s of both {one} and {other}", _TWO_BINDINGS)
        if attribute in ("path", "digest"):
            raise FoldError(f"no process runs both {one} and {other}", _TWO_BINDINGS)
        if _lies_in(one, other):
            return one
        if _lies_in(other, one):
            return other
        raise FoldError(
            f"{one} and {other} are two places in the cgroup tree, and a rule can check one",
            "name the deeper one alone, or its whole path as cgroup:path:/...",
        )

    def _account(self, selector: Selector) -> int:
        if selector.kind in (SelectorKind.UID, SelectorKind.GID):
            return int(selector.value)
        number = self._accounts.get(selector)
        if number is None:
            number = self._accounts[selector] = self._look_up(selector)
        return number

    def _look_up(self, selector: Selector) -> int:
        is_user = selector.kind is SelectorKind.USER
        word = "user" if is_user else "group"
        try:
            number = (self.users if is_user else self.groups)(selector.value)
        except LookupError:
            number = None
        if number is None:
            database = "passwd" if is_user else "group"
            raise FoldError(
                f"this host has no {word} {selector.value}",
                f"see `getent {database}`, or name the number: unix:{word[0]}id:...",
            )
        if not 0 <= number < ANY_OWNER:
            raise FoldError(f"the {word} {selector.value} has the number {number}, which is none")
        return number

    def _scope(self, selector: Selector) -> int:
        kind = _SCOPE_KINDS[selector.kind]
        number = self.numbering.number("scope", f"{kind.name.lower()}:{selector.value}")
        self.scopes[number] = Scope(number, kind, selector.value)
        return number


_TWO_BINDINGS: Final = "write two bindings to mean either of them"


def _lies_in(inner: Selector, outer: Selector) -> bool:
    """Whether every process that `inner` matches is sure to match `outer` too."""
    if inner.kind is SelectorKind.CONTAINER and outer.kind is SelectorKind.CONTAINER:
        return inner.value.startswith(outer.value)
    if inner.kind is not SelectorKind.CGROUP:
        return False
    if outer.kind is SelectorKind.CGROUP:
        return inner.value.startswith(f"{outer.value}/")
    if outer.kind is SelectorKind.CONTAINER:
        return False
    for part in inner.value.split("/")[1:]:  # ScopeKind.UNIT: all ancestors are slices
        if part == outer.value:
            return True
        if not part.endswith(".slice"):
            return False
    return False


def names_of(numbers: Mapping[int, str]) -> tuple[tuple[int, str], ...]:
    """(number, name) pairs in the order of the numbers."""
    return tuple(sorted(numbers.items()))
