# SPDX-License-Identifier: Apache-2.0
"""The events on disk: JSON lines in segment files, bounded in size, readable with `jq`.

Each line is an object with "seq" (from 1, without gaps) before the event's own keys. A segment
is named after its first sequence number. What a crash left half-written at the end is cut off
when the log is opened, and said; a damaged line further up is passed over, and counted.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from licagent.store.errors import StateWriteFailed, StoreError

_SEGMENT = re.compile(r"([0-9]{20})\.jsonl")
EVENT_MAX_BYTES: Final = 16 * 1024
"""A longer event is refused: it is a mistake of the caller."""

Fsync = Literal["always", "rotate"]


class EventTooLarge(StoreError):
    """An event is longer than EVENT_MAX_BYTES."""


@dataclass(frozen=True, slots=True)
class TailCut:
    """What was cut off at the end of the newest segment when the log was opened."""

    segment: Path
    bytes_cut: int


class EventLog:
    """Append-only log of events. One writer, held by the state folder's lock.

    Disk use is at most `segments` x `segment_bytes` plus one event; the oldest segment goes
    when a new one is begun. `fsync` "always" survives a power cut after each append; "rotate"
    syncs full segments and on `sync`, which the daemon calls once a second: a power cut then
    costs at most that second. Neither loses anything when only the daemon dies.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = 4 * 1024 * 1024,
        segments: int = 8,
        fsync: Fsync = "rotate",
    ) -> None:
        """Open the log in `directory`, which exists. `tail_cut` says what was repaired."""
        if segment_bytes < EVENT_MAX_BYTES or segments < 2:
            raise ValueError(f"at least 2 segments of {EVENT_MAX_BYTES} bytes are needed")
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segments = segments
        self._fsync = fsync
        self._fd = -1
        self._size = 0
        self._unsynced = False
        self.tail_cut: TailCut | None = None
        self.lost = 0  # events that could not be written; the next one that can says so
        self._next = self._recover()

    @property
    def next_sequence(self) -> int:
        """The number that the next event gets."""
        return self._next

    @property
    def first_sequence(self) -> int:
        """The oldest event that is still there; `next_sequence` when there is none."""
        firsts = self._firsts()
        return firsts[0] if firsts else self._next

    def append(self, event: Mapping[str, Any]) -> int:
        """Write one event and return its number.

        Raises EventTooLarge, or StateWriteFailed when the disk refuses (full, for instance):
        either way nothing of it is in the log, and `lost` is counted up. The next event that is
        written carries the key "lost_before".
        """
        body: dict[str, Any] = {"seq": self._next}
        if self.lost:
            body["lost_before"] = self.lost
        body.update(event)
        line = json.dumps(body, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > EVENT_MAX_BYTES:
            self.lost += 1
            raise EventTooLarge(f"an event of {len(line)} bytes; {EVENT_MAX_BYTES} are allowed")
        try:
            if self._fd < 0 or (self._size and self._size + len(line) > self._segment_bytes):
                self._begin_segment()
            self._write(line)
        except OSError as error:
            self.lost += 1
            raise StateWriteFailed(
                f"cannot write an event to {self._directory}: {error.strerror}. Events are "
                "counted as lost until there is space again"
            ) from error
        self.lost = 0
        self._next += 1
        return self._next - 1

    def sync(self) -> None:
        """Make all that was appended survive a power cut."""
        if self._unsynced and self._fd >= 0:
            os.fdatasync(self._fd)
            self._unsynced = False

    def close(self) -> None:
        """Sync and close."""
        if self._fd >= 0:
            self.sync()
            os.close(self._fd)
            self._fd = -1

    def read(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """The events with a number above `after`, oldest first. Damaged lines are passed over.

        May be used while events are appended: it ends with the last one that was there.
        """
        firsts = self._firsts()
        for position, first in enumerate(firsts):
            if position + 1 < len(firsts) and firsts[position + 1] <= after + 1:
                continue
            for event in _lines(self._segment(first)):
                if event["seq"] > after:
                    yield event

    def last(self, count: int) -> list[dict[str, Any]]:
        """The newest `count` events, oldest first."""
        if count <= 0:
            return []
        kept: deque[dict[str, Any]] = deque(maxlen=count)
        wanted = self._next - count
        # Whole segments below are not needed, unless lines in the newer ones are damaged;
        # then fewer events are answered rather than the whole log read.
        kept.extend(self.read(after=max(0, wanted - 1)))
        return list(kept)

    def since(self, at: str, key: str = "at") -> Iterator[dict[str, Any]]:
        """The events whose `key`, an RFC 3339 UTC time, is not before `at`."""
        return (event for event in self.read() if str(event.get(key, "")) >= at)

    def damaged_lines(self) -> int:
        """How many lines cannot be read, for `licagent doctor`. Reads the whole log."""
        count = 0
        for first in self._firsts():
            with self._segment(first).open("rb") as file:
                count += sum(1 for line in file if _parse(line) is None)
        return count

    def _segment(self, first: int) -> Path:
        return self._directory / f"{first:020d}.jsonl"

    def _firsts(self) -> list[int]:
        return sorted(
            int(match[1])
            for match in map(_SEGMENT.fullmatch, os.listdir(self._directory))
            if match is not None
        )

    def _recover(self) -> int:
        firsts = self._firsts()
        if not firsts:
            return 1
        path = self._segment(firsts[-1])
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        content = path.read_bytes()
        good, newest = 0, firsts[-1] - 1
        start = 0
        while start < len(content):
            end = content.find(b"\n", start)
            if end < 0:
                break
            event = _parse(content[start : end + 1])
            if event is not None:
                good, newest = end + 1, event["seq"]
            start = end + 1
        if good < len(content):
            # Only what follows the last whole event goes: a torn line, or the zeros that a
            # filesystem leaves after a power cut.
            self.tail_cut = TailCut(path, len(content) - good)
            os.ftruncate(self._fd, good)
            os.fsync(self._fd)
        self._size = good
        return max(newest + 1, firsts[-1])

    def _begin_segment(self) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._fd = os.open(
            self._segment(self._next),
            os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        self._size = os.fstat(self._fd).st_size
        for first in self._firsts()[: -self._segments]:
            self._segment(first).unlink(missing_ok=True)
        directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._fd, line)
            while written < len(line):
                written += os.write(self._fd, line[written:])
            if self._fsync == "always":
                os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)  # no half line before the next event
            raise
        self._size += len(line)
        self._unsynced = self._fsync != "always"


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or type(event.get("seq")) is not int:
        return None
    return event


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:  # rotated away meanwhile
        return
    with file:
        for line in file:
            event = _parse(line)
            if event is not None:
                yield event
