# SPDX-License-Identifier: Apache-2.0
"""Writing to the ledger's segment files, so that a write is there or is known not to be.

After a failed write or fsync, nothing is known of what the disk has (the kernel may have marked
the pages clean and forgotten them): the segment is cut back to what was synced before, as far as
the disk lets us, and never written again. The next frame goes to a new file, whose name voids
what may be left behind the cut.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from licagent.store.epochkeys import write_all
from licagent.store.filelayer import FileLayer
from licagent.store.segments import Segment, SegmentName


@dataclass(slots=True)
class _Open:
    segment: Segment
    handle: int = -1
    """-1: the file has not been made yet."""
    index: list[tuple[int, int]] = field(default_factory=list)
    """First sequence and offset of each frame."""


class SpoolWriter:
    """One segment file at a time. The caller has the folder's lock."""

    def __init__(self, folder: Path, files: FileLayer, next_serial: int) -> None:
        """`next_serial` is larger than that of every file in the folder."""
        self._folder = folder
        self._files = files
        self._serial = next_serial
        self._open: _Open | None = None
        self._strays: list[Path] = []

    def prepare(self, epoch: int, first: int, now_unix_ms: int, segment_bytes: int) -> bytes:
        """Choose the segment that the next frame goes to; its marker."""
        current = self._open
        if current is not None and (
            current.segment.name.epoch != epoch or current.segment.size >= segment_bytes
        ):
            self.close()
            current = None
        if current is not None and not current.segment.size:
            current = None  # chosen before, but the frame did not come
        if current is None:
            name = SegmentName.make(self._serial, epoch, first, now_unix_ms)
            current = self._open = _Open(Segment(name, 0))
        return current.segment.name.marker

    def append(self, frame: bytes, first: int) -> Segment:
        """Write and sync a frame to the segment that `prepare` chose.

        Raises OSError: the frame does not count then, whatever the disk has of it.
        """
        current = self._open
        if current is None:
            raise RuntimeError("prepare comes first")
        path = self._folder / str(current.segment.name)
        is_new = current.handle < 0
        try:
            if is_new:
                self._serial += 1  # also when it fails: no two files have the same
                current.handle = self._files.create(path)
            write_all(self._files, current.handle, frame, current.segment.size)
            self._files.fsync(current.handle)
            if is_new:
                self._files.fsync_folder(self._folder)
        except OSError:
            self._abandon(current, path)
            raise
        current.index.append((first, current.segment.size))
        current.segment.size += len(frame)
        if self._strays:
            self._remove_strays()
        return current.segment

    def offset_of(self, segment: Segment, sequence: int) -> int | None:
        """Where the frame with `sequence` begins, if this is the segment that is being written."""
        current = self._open
        if current is None or current.segment is not segment:
            return None
        offset = 0
        for first, at in reversed(current.index):
            offset = at
            if first <= sequence:
                break
        return offset

    def close(self) -> None:
        """Be done with the segment that is open. May be called twice."""
        current, self._open = self._open, None
        if current is not None and current.handle >= 0:
            with contextlib.suppress(OSError):  # all that counts was synced
                self._files.close(current.handle)

    def _abandon(self, current: _Open, path: Path) -> None:
        if current.handle >= 0:
            with contextlib.suppress(OSError):
                self._files.truncate(current.handle, current.segment.size)
                self._files.fsync(current.handle)
        self.close()
        if not current.segment.size:
            self._strays.append(path)
            self._remove_strays()

    def _remove_strays(self) -> None:
        left = []
        for path in self._strays:
            try:
                self._files.unlink(path)
            except FileNotFoundError:
                pass
            except OSError:
                left.append(path)
        self._strays = left
