# SPDX-License-Identifier: Apache-2.0
"""Reading one TOML file of a policy: typed access that turns every mistake into a problem."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Any, Final

from licagent.domain.problem import PolicyProblem, did_you_mean, nearest, shown
from licagent.domain.toml_lines import LineIndex, Path

_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_TYPES: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
}


class PolicyFile:
    """One file: its document, and the problems found in it so far."""

    def __init__(self, name: str, text: str, problems: list[PolicyProblem]) -> None:
        self.name: Final = name
        self._text: Final = text
        self._problems: Final = problems
        self._lines: Final = LineIndex(text)
        self.document: Final = self._load()

    def _load(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._text)
        except RecursionError:
            message, line, hint = "nested too deeply", 1, "a policy has four levels at most"
        except ValueError as error:  # also what int() says to a number of 5,000 digits
            message, line, hint = self._syntax_error(str(error))
        self._problems.append(PolicyProblem(self.name, line, "", message, hint))
        return {}

    def _syntax_error(self, text: str) -> tuple[str, int, str]:
        match = _TOML_PLACE.search(text)
        line = 1
        message = text
        if match is not None:
            message = text[: match.start()]
            line = int(match[1]) if match[1] else max(1, len(self._text.splitlines()))
            if match[2]:
                message += f" at column {match[2]}"
        hint = "see https://toml.io"
        if self._text.startswith("\ufeff"):
            hint = "save the file without a byte order mark"
        return f"not TOML: {message}", line, hint

    def line(self, path: Path) -> int:
        """The line at which `path` stands."""
        return self._lines.line(path)

    def tables(self, name: str) -> list[tuple[Path, dict[str, Any], int]]:
        """Each `[[name]]` with its path and line; anything else under the name is a problem."""
        value = self.document.get(name, [])
        if isinstance(value, dict):
            self.problem((name,), f"{shown(name)} is a single table", f"write [[{name}]]")
            return []
        if not isinstance(value, list):
            self.wrong_type((name,), value, f"tables, each headed [[{name}]]")
            return []
        found: list[tuple[Path, dict[str, Any], int]] = []
        for index, line in enumerate(self._lines.tables(name, len(value))):
            if isinstance(value[index], dict):
                found.append(((name, index), value[index], line))
            else:
                self.wrong_type((name, index), value[index], f"a table, headed [[{name}]]")
        return found

    def problem(self, path: Path, message: str, suggestion: str = "") -> None:
        """Record what is wrong at `path`."""
        self._problems.append(
            PolicyProblem(self.name, self.line(path), _dotted(path), message, suggestion)
        )

    def wrong_type(self, path: Path, value: object, expected: str) -> None:
        """Record that `path` holds something else than `expected`."""
        found = _TYPES.get(type(value), "a date or time")
        self.problem(path, f"must be {expected}, got {found}")

    def check_keys(self, path: Path, table: Mapping[str, Any], known: Collection[str]) -> None:
        """Record every key of `table` that is not in `known`."""
        for key in table:
            if key not in known:  # nearly always a few keys against a tuple of as many
                match = nearest(key, known)
                hint = f"did you mean {shown(match)}?" if match else f"known: {', '.join(known)}"
                self.problem((*path, key), f"unknown key {shown(key)}", hint)

    def string(self, path: Path, table: Mapping[str, Any], default: str | None = None) -> str:
        """The string at the end of `path`; "" and a problem where it is missing or no string."""
        key = str(path[-1])
        value = table.get(key, default)
        if value is None:
            self.problem(path[:-1], f"{shown(key)} is missing", f'add {key} = "..."')
            return ""
        if not isinstance(value, str):
            self.wrong_type(path, value, "a string")
            return ""
        if value == "" and default is None:
            self.problem(path, "must not be empty")
        return value

    def choice(
        self, path: Path, table: Mapping[str, Any], known: Collection[str], default: str | None
    ) -> str | None:
        """The string at the end of `path` if it is one of `known`; else None and a problem."""
        before = len(self._problems)
        value = self.string(path, table, default)
        if len(self._problems) != before:
            return None
        if value in known:
            return value
        hint = did_you_mean(value, known)
        self.problem(path, f"{shown(value)} is not a {path[-1]} licagent knows", hint)
        return None

    def array(self, path: Path, table: Mapping[str, Any]) -> list[Any]:
        """The array at the end of `path`, which must hold something; [] where it does not."""
        value = table.get(str(path[-1]))
        if not isinstance(value, list):
            self.wrong_type(path, value, "an array")
            return []
        if not value:
            self.problem(path, "must not be empty")
        return value

    def strings(self, path: Path, table: Mapping[str, Any]) -> list[tuple[Path, str]]:
        """The strings of the array at the end of `path`, each with its own path."""
        found = []
        for index, value in enumerate(self.array(path, table)):
            if isinstance(value, str):
                found.append(((*path, index), value))
            else:
                self.wrong_type((*path, index), value, "a string")
        return found


def _dotted(path: Path) -> str:
    """ "resource.destinations[1].cidr": the index of the table itself is told by the line."""
    text = ""
    for position, part in enumerate(path):
        if isinstance(part, int):
            text += "" if position == 1 else f"[{part}]"
        else:
            key = part if part.replace("-", "").replace("_", "").isalnum() else shown(part)
            text += f".{key}" if text else key
    return text
