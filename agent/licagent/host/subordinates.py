# SPDX-License-Identifier: Apache-2.0
"""Who answers for a uid: a user may own files under thousands of subordinate ones (subuid(5))."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUBUID: Final = Path("/etc/subuid")
PASSWD: Final = Path("/etc/passwd")
_LOOK_AGAIN_S: Final = 10.0
_State = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Range:
    first: int
    end: int  # the first uid after it
    owner: int


class Subordinates:
    """The ranges of /etc/subuid, read again when they have changed. For any thread."""

    def __init__(self, subuid: Path = SUBUID, passwd: Path = PASSWD) -> None:
        """Files in the formats of subuid(5) and passwd(5); they may be missing."""
        self._subuid = subuid
        self._passwd = passwd
        self._lock = threading.Lock()
        self._state: tuple[_State | None, ...] = ()
        self._ranges: tuple[_Range, ...] = ()
        self._next_look_s = 0.0

    def owner_of(self, uid: int) -> int:
        """The user who was given `uid` as a subordinate one; `uid` itself for all others.

        Of a user whom /etc/passwd does not know it is the first uid of their range: no name
        service is asked, which could let an answer wait.
        """
        with self._lock:
            if time.monotonic() >= self._next_look_s:
                self._next_look_s = time.monotonic() + _LOOK_AGAIN_S
                self._look()
            for each in self._ranges:
                if each.first <= uid < each.end:
                    return each.owner
        return uid

    def _look(self) -> None:
        state = (_state(self._subuid), _state(self._passwd))
        if state != self._state:
            self._state = state
            self._ranges = _ranges(_lines(self._subuid), _lines(self._passwd))


def _ranges(subuid: list[list[str]], passwd: list[list[str]]) -> tuple[_Range, ...]:
    users = {line[0]: int(line[2]) for line in passwd if len(line) > 2 and line[2].isdecimal()}
    found = []
    for line in subuid:
        if len(line) == 3 and line[1].isdecimal() and line[2].isdecimal():
            user, first, number = line[0], int(line[1]), int(line[2])
            owner = int(user) if user.isdecimal() else users.get(user, first)
            # Root's are of containers that others may have been given: they are not root.
            found.append(_Range(first, first + number, owner if owner > 0 else first))
    return tuple(found)


def _state(path: Path) -> _State | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


def _lines(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [line.split(":") for line in text.splitlines()]
