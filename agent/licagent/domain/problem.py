# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a policy, in words that lead to the repair."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_SHOWN_CHARACTERS: Final = 120
_SUGGESTIONS_MAX: Final = 50


@dataclass(frozen=True, slots=True, order=True)
class PolicyProblem:
    """One thing that is wrong, where it stands, and what to write instead."""

    file: str
    line: int  # 1.. ; 0 where the problem belongs to no line
    key: str  # "resource.destinations[0].cidr"; empty for the file as a whole
    message: str
    suggestion: str = ""  # empty where nothing sensible can be proposed
    absent: bool = False
    """It refers to what is not on this host: no mistake in a policy that is for many hosts."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = ": ".join(part for part in (place, self.key, self.message) if part)
        return f"{text} ({self.suggestion})" if self.suggestion else text


class PolicyError(Exception):
    """A policy that is refused whole; `problems` names everything found, in file order."""

    def __init__(self, problems: Iterable[PolicyProblem]) -> None:
        self.problems: Final = tuple(sorted(set(problems)))
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(f"policy refused, {head}:\n" + "\n".join(map(str, self.problems)))


def shown(value: object) -> str:
    """`value` in quotes as it can be printed on a terminal: escaped, and cut when long."""
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else f'"{value}"'
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that `word` was probably meant to be, if one is near enough.

    Only the first 2,000 entries are compared: the search is quadratic in the word's length
    and a policy may name tens of thousands of resources.
    """
    if not word or len(word) > _SHOWN_CHARACTERS:
        return None
    candidates = [entry for entry, _ in zip(known, range(2000), strict=False)]
    folded = {entry.lower(): entry for entry in candidates}
    matches = difflib.get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to use the nearest of `known`, or the short list of them, or nothing."""
    options = list(known)
    match = nearest(word, options)
    if match is not None:
        return f"did you mean {shown(match)}?"
    if 0 < len(options) <= 8:
        return "one of: " + ", ".join(sorted(options))
    return ""


class Names:
    """Known names, and what to suggest for an unknown one.

    Only the first few unknown names get a suggestion: a policy in which 100,000 bindings are
    wrong in one way must still be refused in seconds.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._known: Final = tuple(known)
        self._left = _SUGGESTIONS_MAX

    def suggest(self, word: str) -> str:
        """What to write instead of `word`; empty where nothing is near, or too many asked."""
        if self._left == 0:
            return ""
        self._left -= 1
        return did_you_mean(word, self._known)
