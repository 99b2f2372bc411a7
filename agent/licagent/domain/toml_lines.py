# SPDX-License-Identifier: Apache-2.0
"""Where in a TOML document a key stands. tomllib says what a document holds, not where.

The text is one that tomllib has accepted, so this reader only has to follow the structure,
not to judge it; where it cannot, it answers with the line of the nearest key around.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from typing import Final, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Keys and array indices from the document's root: ("resource", 0, "destinations", 1)."""

_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*([A-Za-z0-9_-]+)[ \t]*\]\]", re.MULTILINE)

_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|(?P<skip>#[^\n]*|[ \t\r]+)"
    r"|[\[\]{}=,.\n]"
    r"""|[^\s\[\]{}=,.#"']+"""
)

_DEPTH_MAX: Final = 200  # tomllib's own recursion ends earlier


class LineIndex:
    """The lines, from 1, of the keys of one document."""

    def __init__(self, text: str) -> None:
        self._text: Final = text

    def line(self, path: Path) -> int:
        """The line of the key at `path`, else of the nearest key around it, else 1."""
        for end in range(len(path), 0, -1):
            found = self._lines.get(path[:end])
            if found is not None:
                return found
        return 1

    def tables(self, name: str, count: int) -> list[int]:
        """The lines of the `count` tables of the array `name`: of each `[[name]]`."""
        lines = []
        line, position = 1, 0
        for match in _HEADER.finditer(self._text):
            line += self._text.count("\n", position, match.start())
            position = match.start()
            if match[1] == name:
                lines.append(line)
        # Text in a multi-line string may look like a header, and an array may be written inline.
        if len(lines) == count and '"""' not in self._text and "'''" not in self._text:
            return lines
        return [self.line((name, index)) for index in range(count)]

    @cached_property
    def _lines(self) -> dict[Path, int]:
        return _Scanner(self._text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        breaks = [match.start() for match in re.finditer("\n", text)]
        self._tokens: Final = [
            (match[0], bisect_right(breaks, match.start() - 1) + 1)
            for match in _TOKEN.finditer(text)
            if match.lastgroup != "skip"
        ]
        self._at = 0
        self._lines: Final[dict[Path, int]] = {}
        self._arrays: Final[dict[Path, int]] = {}  # arrays of tables: index of the last table

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._at < len(self._tokens):
            token = self._peek()
            if token == "\n":
                self._at += 1
            elif token == "[":
                table = self._header()
            else:
                self._pair(table, 0)
        return self._lines

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _note(self, path: Path, line: int) -> None:
        self._lines.setdefault(path, line)

    def _header(self) -> Path:
        line = self._tokens[self._at][1]
        self._at += 1
        is_array = self._peek() == "["
        if is_array:
            self._at += 1
        keys = self._keys(lambda token: token == "]")
        self._at += 2 if is_array else 1
        path: Path = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            if position == len(keys) - 1 and is_array:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            self._note(path, line)
            if path in self._arrays:
                path = (*path, self._arrays[path])
                self._note(path, line)
        return path

    def _keys(self, ends: Callable[[str], bool]) -> list[str]:
        keys = []
        while (token := self._peek()) and not ends(token) and token != "\n":
            if token != ".":
                keys.append(_key(token))
            self._at += 1
        return keys

    def _pair(self, table: Path, depth: int) -> None:
        line = self._tokens[self._at][1]
        path = table
        for key in self._keys(lambda token: token in "={}[],"):
            path = (*path, key)
            self._note(path, line)
        if self._peek() == "=":
            self._at += 1
            self._value(path, depth)
        else:
            self._at += 1

    def _value(self, path: Path, depth: int) -> None:
        token = self._peek()
        if token in ("[", "{") and depth < _DEPTH_MAX:
            self._at += 1
            if token == "[":
                self._array(path, depth + 1)
            else:
                self._inline_table(path, depth + 1)
            return
        while (token := self._peek()) and token not in (",", "]", "}", "\n"):
            self._at += 1  # a float or a date is several tokens

    def _array(self, path: Path, depth: int) -> None:
        index = 0
        while (token := self._peek()) and token != "]":
            if token in (",", "\n"):
                self._at += 1
                continue
            before = self._at
            self._note((*path, index), self._tokens[self._at][1])
            self._value((*path, index), depth)
            index += 1
            self._at += self._at == before
        self._at += 1

    def _inline_table(self, path: Path, depth: int) -> None:
        while (token := self._peek()) and token != "}":
            if token in (",", "\n"):
                self._at += 1
            else:
                self._pair(path, depth)
        self._at += 1


def _key(token: str) -> str:
    """A key as tomllib reports it; escapes other than of quotes stay as they are written."""
    if token[0] == '"':
        return token.strip('"').replace('\\"', '"').replace("\\\\", "\\")
    return token.strip("'") if token[0] == "'" else token
