# SPDX-License-Identifier: Apache-2.0
"""Reading a document: typed access in which every mistake is named with its place and repair."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, TypeVar, cast

from licplane.errors import ExitCode, PlaneError
from licplane.service.texts import shown
from lictoken.errors import TokenError
from lictoken.fields import TEXT_MAX
from lictoken.strictjson import parse_object

Value = TypeVar("Value")

DOCUMENT_BYTES_MAX: Final = 64 * 1024
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
"""Names of resources and bindings, as the agent takes them."""
_PROBLEMS_SHOWN: Final = 20
_TYPES: Final = {
    bool: "true or false",
    int: "a whole number",
    str: "a text",
    list: "a list",
    dict: "a table",
    type(None): "null",
}


class Problems:
    """Everything that is wrong with some documents."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, place: str, message: str, hint: str = "") -> None:
        """Note one mistake."""
        self._found.append(f"{place}: {message}" + (f" ({hint})" if hint else ""))

    def __len__(self) -> int:
        return len(self._found)

    def check(self) -> None:
        """Raise PlaneError USAGE with all of them, if there are any."""
        if not self._found:
            return
        lines = self._found[:_PROBLEMS_SHOWN]
        more = len(self._found) - len(lines)
        if more:
            lines.append(f"and {more} more")
        count = f"{len(self._found)} problems: " if len(self._found) > 1 else ""
        raise PlaneError(ExitCode.USAGE, count + "; ".join(lines), "Nothing was changed")


class Table:
    """One object of a document. `place` is where it stands, for the problems."""

    def __init__(self, place: str, value: Mapping[str, object], problems: Problems) -> None:
        self.place = place
        self.value = value
        self.problems = problems

    def at(self, key: str) -> str:
        """The place of a member."""
        name = key if re.fullmatch(r"[a-z_]{1,40}", key) else shown(key)
        return f"{self.place}.{name}" if self.place.endswith("]") else f"{self.place}: {name}"

    def problem(self, key: str, message: str, hint: str = "") -> None:
        """Note what is wrong with a member."""
        self.problems.add(self.at(key) if key else self.place, message, hint)

    def keys(self, known: Collection[str]) -> None:
        """Note every member that is not `known`, with the nearest that is."""
        for key in self.value:
            if key not in known:
                self.problem(key, "is unknown", nearest(key, known) or f"known: {_list(known)}")

    def text(self, key: str, default: str | None = None) -> str:
        """A printable text; "" and a problem where there is none."""
        value = self._get(key, str, default)
        if value is None:
            return ""
        if value == "" and default is None:
            self.problem(key, "must not be empty")
        elif len(value) > TEXT_MAX or not (value == "" or value.isprintable()):
            self.problem(
                key, f"{shown(value)} is no printable text of at most {TEXT_MAX} characters"
            )
            return ""
        return value

    def choice(self, key: str, known: Collection[str], default: str | None = None) -> str | None:
        """One of `known`; None and a problem where it is not."""
        before = len(self.problems)
        value = self.text(key, default)
        if len(self.problems) != before:
            return None
        if value in known:
            return value
        hint = nearest(value, known) or f"one of: {_list(known)}"
        self.problem(key, f"{shown(value)} is not known", hint)
        return None

    def name(self, key: str, pattern: re.Pattern[str] = NAME) -> str:
        """A name; "" and a problem where it cannot be one."""
        value = self.text(key)
        if value and not pattern.fullmatch(value):
            self.problem(
                key,
                f"{shown(value)} cannot be a name",
                "letters, digits and . _ : / -, at most 128"
                if pattern is NAME
                else f"it must match {pattern.pattern}",
            )
            return ""
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in low..high."""
        value = self._get(key, int, default)
        if value is None:
            return low
        if not low <= value <= high:
            self.problem(key, f"{value} is not within {low}..{high}")
            return low
        return value

    def items(self, key: str) -> list[object]:
        """A list of anything, which may be empty; [] where it is none."""
        return self._get(key, list, []) or []

    def names(self, key: str, pattern: re.Pattern[str] | None = NAME) -> tuple[str, ...]:
        """A list of texts without repetition; () where it is absent."""
        found: list[str] = []
        for at, item in enumerate(self.items(key)):
            place = f"{self.at(key)}[{at}]"
            if not isinstance(item, str):
                self.problems.add(place, f"must be a text, not {kind_of(item)}")
            elif pattern is not None and not pattern.fullmatch(item):
                self.problems.add(place, f"{shown(item)} does not match {pattern.pattern}")
            elif item in found:
                self.problems.add(place, f"{shown(item)} stands there twice")
            else:
                found.append(item)
        return tuple(found)

    def tables(self, key: str) -> list[Table]:
        """A list of tables."""
        found = []
        for at, item in enumerate(self.items(key)):
            place = f"{self.at(key)}[{at}]"
            if isinstance(item, dict):
                found.append(Table(place, cast("dict[str, object]", item), self.problems))
            else:
                self.problems.add(place, f"must be a table, not {kind_of(item)}")
        return found

    def table(self, key: str) -> Table:
        """A table; an empty one where it is absent or none."""
        value: dict[str, object] = self._get(key, dict, {}) or {}
        return Table(self.at(key), value, self.problems)

    def _get(self, key: str, kind: type[Value], default: Value | None) -> Value | None:
        if key not in self.value:
            if default is None:
                self.problem(key, "is missing")
            return default
        value = self.value[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            self.problem(key, f"must be {_TYPES[kind]}, not {kind_of(value)}")
            return None
        return value


def read_table(place: str, text: str, problems: Problems) -> Table | None:
    """The JSON object in `text`; None and a problem where it is none."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        problems.add(place, "is not UTF-8")
        return None
    if len(data) > DOCUMENT_BYTES_MAX:
        problems.add(
            place, f"has {len(data)} bytes", f"at most {DOCUMENT_BYTES_MAX}: split it into several"
        )
        return None
    try:
        return Table(place, parse_object(data, "the document"), problems)
    except TokenError as error:
        problems.add(place, error.detail)
        return None


def canonical_payload(value: Mapping[str, object]) -> bytes:
    """JSON as the catalog holds it: keys sorted, no spaces.

    Lone surrogates, which are refused by their places, become question marks here.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace")


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or nothing."""
    options = list(known)[:2000]
    found = difflib.get_close_matches(word[:TEXT_MAX].lower(), options, n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else ""


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return _TYPES.get(type(value), "something else")


def attempt(table: Table, place: str, work: Callable[[], Value]) -> Value | None:
    """The result of `work`; a TokenError becomes a problem at `place`."""
    try:
        return work()
    except TokenError as error:
        table.problems.add(place, error.detail)
        return None


def _list(known: Collection[str]) -> str:
    return ", ".join(known)
