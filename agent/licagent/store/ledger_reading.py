# SPDX-License-Identifier: Apache-2.0
"""Reading the ledger's segments while they are written and dropped by others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from licagent.store.filelayer import FileLayer
from licagent.store.frames import scan
from licagent.store.ledger_types import LedgerBlocked
from licagent.store.segments import Content, Segment, read_content, read_stubbornly

_READ_TRIES: Final = 3
"""So often a disk may fail to give a segment before what it does not give counts as damaged."""


class SegmentReader:
    """Gives the content of segments; keeps the last sealed one, for it is read piece by piece."""

    def __init__(
        self,
        folder: Path,
        files: FileLayer,
        *,
        offset_of: Callable[[Segment, int], int | None],
        is_held: Callable[[Segment], bool],
    ) -> None:
        """`offset_of` knows the frames of the segment that is being written; None: not it."""
        self._folder = folder
        self._files = files
        self._offset_of = offset_of
        self._is_held = is_held
        self._last: tuple[Segment, Content] | None = None
        self._failed: Counter[str] = Counter()

    def __call__(self, segment: Segment, expected: int) -> Content | None:
        """A `segments.Reader`. Raises LedgerBlocked; Dropped if it was dropped meanwhile."""
        try:
            return self._content(segment, expected)
        except FileNotFoundError as error:
            if self._is_held(segment):
                segment.is_damaged = True
                return None  # removed by somebody else: a gap
            raise Dropped from error
        except OSError as error:
            raise LedgerBlocked(
                f"cannot read {self._folder / str(segment.name)}: {error.strerror}. It is tried "
                "again; what cannot be read in the end is told as a gap"
            ) from error

    def forget(self) -> None:
        """Free the memory."""
        self._last = None

    def _content(self, segment: Segment, expected: int) -> Content:
        path = self._folder / str(segment.name)
        offset = self._offset_of(segment, expected)
        if offset is not None:
            data = self._files.read(path, offset, segment.size - offset)
            return Content(data, scan(data, segment.name.marker))
        last = self._last
        if last is not None and last[0] is segment:
            return last[1]
        content = read_content(self._bytes(path), segment)
        self._last = (segment, content)
        return content

    def _bytes(self, path: Path) -> bytes:
        if self._failed[path.name] >= _READ_TRIES:
            return read_stubbornly(self._files, path)
        try:
            return self._files.read(path)
        except FileNotFoundError:
            raise
        except OSError:
            self._failed[path.name] += 1
            raise


class Dropped(Exception):
    """A segment went while it was being read: whoever reads begins again."""
