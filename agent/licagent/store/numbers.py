# SPDX-License-Identifier: Apache-2.0
"""Numbers for names, kept over restarts and never given to another name.

Tags on live sockets and counters in the kernel name resources by number. If a number came to
mean another resource after a restart, an open socket would carry a right that nobody gave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.statedir import StateDir

_DOCUMENT: Final = "numbers"
_SCHEMA: Final = "licagent.numbers/1"
_FLOOR_DOCUMENT: Final = "numbers-floor"
_FLOOR_SCHEMA: Final = "licagent.numbers-floor/1"
_FLOOR_STEP: Final = 4096
NUMBER_MAX: Final = 0xFFFFFFFE
"""The last number: 0 means any and 0xFFFFFFFF the failsafe list (licagent.domain.tables)."""


class NumbersExhausted(StoreError):
    """A space has no number left."""


class PersistentNumbering:
    """Numbers from 1 up, one sequence a space ("resource", "scope", "path", "digest").

    `number` works in memory; `save` makes what it gave out durable. Save before writing the
    numbers to the kernel: a number that was lost before that was never used.

    Two documents are kept. If the names are damaged, the second one (the highest number that
    may have been given out, in steps of 4096) keeps new numbers above all old ones.
    """

    def __init__(self, state: StateDir) -> None:
        """Load what is there; `damaged` then says whether the names were lost."""
        self._state = state
        self._names: dict[str, dict[str, int]] = {}
        self._next: dict[str, int] = {}
        self._floor: dict[str, int] = {}
        self._dirty = False
        self.damaged: DocumentDamaged | None = None
        self._load()

    def number(self, space: str, name: str) -> int:
        """The number of `name`, a new one if it has none. Raises NumbersExhausted."""
        names = self._names.setdefault(space, {})
        found = names.get(name)
        if found is not None:
            return found
        number = self._next.get(space, 1)
        if number > NUMBER_MAX:
            raise NumbersExhausted(
                f"all {NUMBER_MAX} {space} numbers are used up: stop the daemon, run "
                "`licagent detach`, and remove numbers.json and numbers-floor.json"
            )
        names[name] = number
        self._next[space] = number + 1
        self._dirty = True
        return number

    def name(self, space: str, number: int) -> str | None:
        """The name that has a number, or None."""
        for name, held in self._names.get(space, {}).items():
            if held == number:
                return name
        return None

    def names(self, space: str) -> Mapping[str, int]:
        """All names of a space; a view, not to be changed."""
        return self._names.get(space, {})

    def raise_floor(self, space: str, above: int) -> None:
        """Never give out `above` or less from now on (numbers seen in the kernel's tables)."""
        if above >= self._next.get(space, 1):
            self._next[space] = above + 1
            self._dirty = True

    def forget(self, space: str, names: frozenset[str]) -> int:
        """Drop names that no table holds any more; their numbers are not used again."""
        held = self._names.get(space, {})
        gone = [name for name in held if name in names]
        for name in gone:
            del held[name]
        self._dirty = self._dirty or bool(gone)
        return len(gone)

    def save(self) -> bool:
        """Make all numbers durable; whether there was anything to write."""
        if not self._dirty:
            return False
        # The floor goes first: it must never be below a number that a document holds.
        if any(number > self._floor.get(space, 0) for space, number in self._next.items()):
            floor = {
                space: -(-number // _FLOOR_STEP) * _FLOOR_STEP
                for space, number in self._next.items()
            }
            self._state.write_document(_FLOOR_DOCUMENT, _FLOOR_SCHEMA, {"next": floor})
            self._floor = floor
        self._state.write_document(_DOCUMENT, _SCHEMA, {"next": self._next, "names": self._names})
        self._dirty = False
        return True

    def _load(self) -> None:
        try:
            floor = self._state.read_document(_FLOOR_DOCUMENT, _FLOOR_SCHEMA)
        except DocumentDamaged as error:
            floor, self.damaged = None, error
        self._floor = dict((floor or {}).get("next", {}))
        try:
            body = self._state.read_document(_DOCUMENT, _SCHEMA)
        except DocumentDamaged as error:
            body, self.damaged = None, error
        if body is None:
            self._next = dict(self._floor)
        else:
            self._take(body)
        if self.damaged is not None:
            # Two whole documents again, before the other one is damaged too.
            self._dirty = True
            self.save()

    def _take(self, body: Mapping[str, Any]) -> None:
        self._names = {space: dict(names) for space, names in body["names"].items()}
        self._next = dict(body["next"])
        for space, names in self._names.items():
            highest = max(names.values(), default=0)
            self._next[space] = max(self._next.get(space, 1), highest + 1)
