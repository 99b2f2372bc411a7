# SPDX-License-Identifier: Apache-2.0
"""Looks paths up on threads of its own: a filesystem may hang, and then nobody else does.

A file server that is gone, or a FUSE filesystem whose program answers no more, holds up whoever
looks at a path of it, for as long as it likes. A revocation cannot wait for that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from licagent.host.executables import DirectoryEntry, directory_entry
from licagent.host.mounts import MountTable

STALL_S: Final = 2.0
"""A path without an answer for so long is left to itself; a busy disk answers in less."""
HUNG_MAX: Final = 8
"""Threads that hang at the same time, at most: one for each mount, or link into one."""
_KEPT_MAX: Final = 1024
"""Entries that are kept beyond twice those in force: a new policy may yet be refused."""


class HangingPath(OSError):
    """A path whose filesystem does not answer."""

    def __init__(self, path: str) -> None:
        """`path` is what was looked up."""
        super().__init__(f"{path}: its filesystem does not answer. Is a file server down?")
        self.path = path


Answer = DirectoryEntry | Exception


class _Look:
    """Paths that one thread looks up, in order."""

    def __init__(self, paths: Iterable[str], find: Callable[[str], DirectoryEntry]) -> None:
        self.answers: dict[str, Answer] = {}
        self.at: str | None = None
        self.since_s = time.monotonic()
        self.done = threading.Event()
        self._left = deque(paths)
        self._find = find
        threading.Thread(target=self._run, name="paths", daemon=True).start()

    def give_up(self) -> None:
        """Look at nothing more after the path that hangs."""
        self._left.clear()

    def _run(self) -> None:
        while self._left:
            try:
                path = self._left.popleft()
            except IndexError:  # given up just now
                break
            self.since_s, self.at = time.monotonic(), path
            try:
                self.answers[path] = self._find(path)
            except Exception as error:  # noqa: BLE001 - one path costs nothing but itself
                self.answers[path] = error
        self.at = None
        self.done.set()


class PathFinder:
    """The folder entries of paths, as far as their filesystems answer. Not for several threads."""

    def __init__(
        self,
        find: Callable[[str], DirectoryEntry] = directory_entry,
        mounts: MountTable | None = None,
    ) -> None:
        """`mounts` is the daemon's own table."""
        self._find = find
        self._mounts = mounts if mounts is not None else MountTable()
        self._last: dict[str, DirectoryEntry] = {}
        self._hung: dict[str, _Look] = {}  # path -> the thread that waits for it

    def find(self, paths: Iterable[str]) -> dict[str, Answer]:
        """Every path's entry, or why it has none. HangingPath: neither is known.

        A path that hangs keeps the entry that it had: nothing can be put in its place there.
        Takes STALL_S more for each mount that hangs and was not known to.
        """
        wanted = tuple(dict.fromkeys(paths))
        self._hung = {path: look for path, look in self._hung.items() if not look.done.is_set()}
        answers: dict[str, Answer] = {}
        while left := [each for each in wanted if each not in answers and self._may_look(each)]:
            look = _Look(left, self._find)
            self._wait(look)
            answers.update(dict(look.answers))
        if len(self._last) > 2 * len(wanted) + _KEPT_MAX:
            self._last = {path: self._last[path] for path in wanted if path in self._last}
        for path in wanted:
            answer = answers.setdefault(path, self._last.get(path) or HangingPath(path))
            if isinstance(answer, DirectoryEntry):
                self._last[path] = answer
            elif not isinstance(answer, HangingPath):
                self._last.pop(path, None)
        return answers

    @property
    def hanging(self) -> tuple[str, ...]:
        """The paths that threads wait for."""
        return tuple(self._hung)

    def is_hanging(self, path: str) -> bool:
        """Whether a path lies where another one hangs, or is one."""
        if not self._hung:
            return False
        point = self._mounts.point_of(path)
        # The root holds everything: links out of it lead to all the others.
        return any(
            path == each or (point != "/" and point == self._mounts.point_of(each))
            for each in self._hung
        )

    def _may_look(self, path: str) -> bool:
        return len(self._hung) < HUNG_MAX and not self.is_hanging(path)

    def _wait(self, look: _Look) -> None:
        while not look.done.wait(max(look.since_s + STALL_S - time.monotonic(), 0.0)):
            at = look.at
            if at is not None and time.monotonic() >= look.since_s + STALL_S:
                look.give_up()
                self._hung[at] = look
                return
