# SPDX-License-Identifier: Apache-2.0
"""Reads the members of one JSON object, each checked, none left over."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Final, cast

from lictoken.errors import Refusal, TokenError, shown

TEXT_MAX: Final = 512
"""Longest text in a license, in characters."""

ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
"""Ids of licenses and statements. Safe as a file name."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
"""Names of resources (as policy files have them), organisations, projects, regions..."""

HOST: Final = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._:*?-]{0,252}", re.ASCII)
"""A host's name, in which `*` and `?` stand for any characters, or `machine-id:...`."""

WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
"""Meters and kinds of conditions."""

_REQUIRED: Final = object()


class Fields:
    """The members of one object. Unknown members are refused at once, with a suggestion."""

    def __init__(self, value: object, path: str, known: Sequence[str]) -> None:
        """`path` is the object's place in the token, "" for the top."""
        if not isinstance(value, dict):
            raise TokenError(Refusal.BAD_VALUE, f"{path or 'the token'} is not an object")
        self._members = cast("dict[str, object]", value)
        self._path = path
        for name in self._members:
            if name not in known:
                raise TokenError(
                    Refusal.UNKNOWN_FIELD,
                    f"{self.place(name)} is unknown{suggestion(name, known)}",
                )

    def place(self, name: str) -> str:
        """The member's full name, for errors."""
        shown_name = name if WORD.fullmatch(name) else shown(name)
        return f"{self._path}.{shown_name}" if self._path else shown_name

    def get(self, name: str, default: object = _REQUIRED) -> object:
        """The raw member. Raises MISSING_FIELD when it is absent and has no default."""
        if name in self._members:
            return self._members[name]
        if default is _REQUIRED:
            raise TokenError(Refusal.MISSING_FIELD, f"{self.place(name)} is missing")
        return default

    def has(self, name: str) -> bool:
        """Whether the member is present."""
        return name in self._members

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in low..high. A bool is no number."""
        value = self.get(name, _REQUIRED if default is None else default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TokenError(Refusal.BAD_VALUE, f"{self.place(name)} is not a whole number")
        if not low <= value <= high:
            raise TokenError(
                Refusal.BAD_NUMBER, f"{self.place(name)} is {value}, not within {low}..{high}"
            )
        return value

    def text(self, name: str, pattern: re.Pattern[str] | None = None) -> str:
        """A printable text of 1..TEXT_MAX characters that matches `pattern` as a whole."""
        return check_text(self.get(name), self.place(name), pattern)

    def optional_text(self, name: str, pattern: re.Pattern[str] | None = None) -> str | None:
        """As `text`, or None when the member is absent."""
        return self.text(name, pattern) if self.has(name) else None

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of `choices`."""
        value = self.get(name, _REQUIRED if default is None else default)
        return check_choice(value, self.place(name), choices)

    def items(self, name: str, *, default: tuple[object, ...] | None = None) -> list[object]:
        """A list of anything."""
        value = self.get(name, _REQUIRED if default is None else list(default))
        if not isinstance(value, list):
            raise TokenError(Refusal.BAD_VALUE, f"{self.place(name)} is not a list")
        return value

    def texts(self, name: str, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        """A list of texts without repetition; empty when the member is absent."""
        place = self.place(name)
        found = tuple(
            check_text(item, f"{place}[{at}]", pattern)
            for at, item in enumerate(self.items(name, default=()))
        )
        check_unique(found, place)
        return found


def check_text(value: object, place: str, pattern: re.Pattern[str] | None) -> str:
    """`value` as a printable text (no control characters, no lone surrogates)."""
    if not isinstance(value, str):
        raise TokenError(Refusal.BAD_VALUE, f"{place} is not a text")
    if not 1 <= len(value) <= TEXT_MAX or not value.isprintable() or value != value.strip():
        raise TokenError(
            Refusal.BAD_VALUE,
            f"{place} is {shown(value)}, not a printable text of 1..{TEXT_MAX} characters",
        )
    if pattern is not None and not pattern.fullmatch(value):
        raise TokenError(
            Refusal.BAD_VALUE, f"{place} is {shown(value)}, which does not match {pattern.pattern}"
        )
    return value


def check_choice(value: object, place: str, choices: Sequence[str]) -> str:
    """`value` as one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        hint = suggestion(value, choices) if isinstance(value, str) else ""
        raise TokenError(
            Refusal.BAD_VALUE,
            f"{place} is {shown(value)}, not one of {', '.join(choices)}{hint}",
        )
    return value


def check_unique(found: Sequence[str], place: str) -> None:
    """Refuse a list that names something twice."""
    seen: set[str] = set()
    for item in found:
        if item in seen:
            raise TokenError(Refusal.BAD_VALUE, f"{place} names {shown(item)} twice")
        seen.add(item)


def suggestion(name: str, known: Sequence[str]) -> str:
    """` (did you mean ...?)` or nothing."""
    near = difflib.get_close_matches(name[:TEXT_MAX], known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
