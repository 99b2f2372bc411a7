# SPDX-License-Identifier: Apache-2.0
"""Looks paths up on threads of its own: a filesystem may hang, and then nobody else does.

A file server that is gone, or a FUSE filesystem whose program answers no more, holds up whoever
looks at a path of it, for as long as it likes. A revocation cannot wait for that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from licagent.host.executables import DirectoryEntry, directory_entry
from licagent.host.mounts import MountTable

STALL_S: Final = 2.0
"""A path without an answer for so long is left to itself; a busy disk answers in less."""
PATIENCE_S: Final = 10.0
"""For all paths of one look: some filesystems answer, and take a second for each."""
HUNG_MAX: Final = 8
"""Threads that are left to themselves at the same time, at most."""
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
        self.at: str | None = None
        self.since_s = time.monotonic()
        self.done = threading.Event()
        self._answers: dict[str, Answer] = {}
        self._left = deque(paths)
        self._find = find
        threading.Thread(target=self._run, name="paths", daemon=True).start()

    def give_up(self) -> None:
        """Look at nothing more after the path that it is at."""
        self._left.clear()

    def take(self) -> dict[str, Answer]:
        """The answers that came since the last time."""
        taken: dict[str, Answer] = {}
        while self._answers:
            path, answer = self._answers.popitem()
            taken[path] = answer
        return taken

    def _run(self) -> None:
        while self._left:
            try:
                path = self._left.popleft()
            except IndexError:  # given up just now
                break
            self.since_s, self.at = time.monotonic(), path
            try:
                self._answers[path] = self._find(path)
            except Exception as error:  # noqa: BLE001 - one path costs nothing but itself
                self._answers[path] = error
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
        self._answered_s: dict[str, float] = {}
        self._left_alone: list[_Look] = []

    def find(self, paths: Iterable[str], patience_s: float = PATIENCE_S) -> dict[str, Answer]:
        """Every path's entry, or why it has none. HangingPath: neither is known.

        A path without an answer keeps the entry that it had: nothing can be put in its place
        there. Waits for `patience_s` in all, and for STALL_S at one path. Where that is not
        enough for all, the next look begins with those that were left out, and has what came
        meanwhile.
        """
        until_s = time.monotonic() + patience_s
        wanted = tuple(dict.fromkeys(paths))
        self._take_late()
        answers: dict[str, Answer] = {}
        while left := self._left(wanted, answers):
            look = _Look(left, self._find)
            self._wait(look, until_s)
            answers.update(look.take())
            if time.monotonic() >= until_s:
                break
        self._note(answers)
        if len(self._answered_s) > 2 * len(wanted) + _KEPT_MAX:
            self._last = {path: self._last[path] for path in wanted if path in self._last}
            self._answered_s = {path: self._answered_s.get(path, 0.0) for path in wanted}
        return {
            path: answers.get(path) or self._last.get(path) or HangingPath(path) for path in wanted
        }

    @property
    def hanging(self) -> tuple[str, ...]:
        """The paths that have had no answer for STALL_S."""
        late_s = time.monotonic() - STALL_S
        return tuple(at for each in self._left_alone if (at := each.at) and each.since_s <= late_s)

    def is_hanging(self, path: str) -> bool:
        """Whether a path lies where a thread still waits for another one, or is that."""
        busy = [at for each in self._left_alone if (at := each.at)]
        if not busy:
            return False
        point = self._mounts.point_of(path)
        # The root holds everything: links out of it lead to all the others.
        return any(
            path == each or (point != "/" and point == self._mounts.point_of(each)) for each in busy
        )

    def last(self, path: str) -> DirectoryEntry | None:
        """What was found last, without looking."""
        return self._last.get(path)

    def _left(self, wanted: Iterable[str], answers: Mapping[str, Answer]) -> list[str]:
        """What is to be looked at, the longest unknown first."""
        if len(self._left_alone) >= HUNG_MAX:
            return []
        left = [each for each in wanted if each not in answers and not self.is_hanging(each)]
        return sorted(left, key=lambda each: self._answered_s.get(each, 0.0))

    def _take_late(self) -> None:
        """Note the answers of those that were left alone."""
        waiting = []
        for look in self._left_alone:
            is_done = look.done.is_set()  # before its answers are taken: none is lost
            late = look.take()
            # Somebody else may have looked since.
            self._note(
                {
                    path: answer
                    for path, answer in late.items()
                    if self._answered_s.get(path, 0.0) <= look.since_s
                }
            )
            if not is_done:
                waiting.append(look)
        self._left_alone = waiting

    def _note(self, answers: Mapping[str, Answer]) -> None:
        now_s = time.monotonic()
        for path, answer in answers.items():
            self._answered_s[path] = now_s
            if isinstance(answer, DirectoryEntry):
                self._last[path] = answer
            else:
                self._last.pop(path, None)

    def _wait(self, look: _Look, until_s: float) -> None:
        while not look.done.wait(max(self._end_s(look, until_s) - time.monotonic(), 0.0)):
            if time.monotonic() >= self._end_s(look, until_s):
                look.give_up()
                self._left_alone.append(look)
                return

    @staticmethod
    def _end_s(look: _Look, until_s: float) -> float:
        return min(look.since_s + STALL_S, until_s)
