# SPDX-License-Identifier: Apache-2.0
"""Looking for executables: what runs, what is installed, what stands where programs stood."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from licagent.host.exec_paths import (
    NOTED_NAMES_MAX,
    Candidate,
    installed,
    running,
    standard_directories,
)
from licagent.host.measurable import Found
from licagent.host.walk import ForeignFilesystemError

_FOLDERS_MAX: Final = 256
_FOLDERS_OF_ONE_MAX: Final = 64
_LOOK_AGAIN_S: Final = 2.0


class ExecSearch:
    """One look through all, name by name. For the one thread that measures."""

    def __init__(self, complain: Callable[[str, BaseException], None]) -> None:
        """`complain` is told of a fault of ours that a name has brought about."""
        self._complain = complain
        self._names: Iterator[Candidate | None] | None = None
        self._is_in_noted = False  # it looks through folders of others
        self._folders: dict[str, int] = {}  # where programs stood, and their owner
        self.next_begin_s = 0.0
        """Not to be begun again before; by time.monotonic()."""
        self.next_name_s = 0.0
        """No name to be taken before."""

    @property
    def is_on(self) -> bool:
        """Whether there may be more names."""
        return self._names is not None

    def may_begin(self, now_s: float) -> bool:
        """Whether it is neither on, nor was begun a moment ago."""
        return self._names is None and now_s >= self.next_begin_s

    def is_due(self, now_s: float) -> bool:
        """Whether a name may be taken now."""
        return self._names is not None and now_s >= self.next_name_s

    def begin(self) -> None:
        """From the beginning."""
        self.next_begin_s = time.monotonic() + _LOOK_AGAIN_S
        self._names = self._look_through()

    def stop(self) -> None:
        """Take no more names."""
        self._names = None

    def next(self) -> Candidate | None:
        """The next name, or None for a step without one. StopIteration: that was all."""
        if self._names is None:
            raise StopIteration
        return next(self._names)

    def has_taken(self, spent_s: float) -> None:
        """Wait as long as that before the next name of a folder of others: half of one CPU."""
        if self._is_in_noted:
            self.next_name_s = time.monotonic() + spent_s

    def note_folder(self, found: Found) -> None:
        """Remember where a program stands."""
        if found.name is None or len(self._folders) >= _FOLDERS_MAX:
            return
        folder, owner = str(Path(found.name).parent), found.owner
        if sum(each == owner for each in self._folders.values()) < _FOLDERS_OF_ONE_MAX:
            self._folders.setdefault(folder, owner)

    def _look_through(self) -> Iterator[Candidate | None]:
        """What runs, what is installed, and what stands where programs stood."""
        self._is_in_noted = False
        yield from running()
        yield from installed(standard_directories(), self._forget_folder)
        self._is_in_noted = True
        yield from installed(tuple(self._folders), self._forget_folder, NOTED_NAMES_MAX)

    def _forget_folder(self, folder: str, error: Exception) -> None:
        self._folders.pop(folder, None)
        if not isinstance(error, OSError | ValueError | ForeignFilesystemError):
            self._complain(folder, error)
