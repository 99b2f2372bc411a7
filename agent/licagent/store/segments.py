# SPDX-License-Identifier: Apache-2.0
"""Segment files of the ledger: their names, what is in them, and reading a chain through them.

A file's name says which place it has (`serial` counts up over all files of the folder), its
epoch, the sequence of its first record, when it was begun, and the marker of its frames. A file
voids what files before it hold from its own first sequence on: that was written by a commit that
failed, and was told so.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from licagent.store.filelayer import FileLayer
from licagent.store.frames import Frame, Scan, scan
from licagent.store.ledger_types import FRAME_RECORDS, Batch, Gap

_NAME: Final = re.compile(
    r"([0-9a-f]{8})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{12})-([0-9a-f]{16})\.usage"
)
_PAGE_BYTES: Final = 4096
DAMAGED: Final = "damaged: its checksum does not fit"
MISSING: Final = "missing: removed, or overwritten together with its name"
DROPPED: Final = "dropped: the spool's bound was reached and nobody had acknowledged it"
DELIVERED: Final = "acknowledged before, and not held any more"
TORN: Final = "damaged at the end of the spool: up to so many records, perhaps none"


@dataclass(frozen=True, slots=True)
class SegmentName:
    """What the name of a segment file says."""

    serial: int
    epoch: int
    first: int
    begun_unix_ms: int
    marker: bytes

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """None for other files."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        serial, epoch, first, begun = (int(each, 16) for each in match.groups()[:4])
        return cls(serial, epoch, first, begun, bytes.fromhex(match[5]))

    @classmethod
    def make(cls, serial: int, epoch: int, first: int, begun_unix_ms: int) -> SegmentName:
        """A new one with a marker that nobody can guess."""
        begun = min(max(begun_unix_ms, 0), 2**48 - 1)
        return cls(serial, epoch, first, begun, secrets.token_bytes(8))

    def __str__(self) -> str:
        return (
            f"{self.serial:08x}-{self.epoch:016x}-{self.first:016x}-"
            f"{self.begun_unix_ms:012x}-{self.marker.hex()}.usage"
        )


@dataclass(slots=True)
class Segment:
    """A segment file that is there."""

    name: SegmentName
    size: int
    """Of its file; of the one that is being written: what is committed."""
    is_damaged: bool = False
    """Something in it could not be read: it is kept when it is not needed any more."""


@dataclass(frozen=True, slots=True)
class Content:
    """A segment's bytes, and the frames in them."""

    data: bytes
    scan: Scan


Reader = Callable[[Segment, int], Content | None]
"""A segment's content, from the sequence on that is asked for at least; None: it is gone."""


_LISTINGS: Final = 20
"""Readings of a folder before one is taken that differs from the one before it."""


def listed(files: FileLayer, folder: Path) -> list[Segment]:
    """The segments of a folder, in order. Raises OSError; FileNotFoundError if one went meanwhile.

    Reading a folder is no snapshot: beside a daemon it may leave out an old segment that was
    dropped meanwhile, and also the new one, made before, whose frame says that it was delivered.
    What two readings agree on is whole, for nothing is dropped before that frame is there.
    """
    names = files.names(folder)
    for _ in range(_LISTINGS):
        again = files.names(folder)
        if set(again) == set(names):
            break
        names = again
    found = []
    for each in names:
        name = SegmentName.parse(each)
        if name is not None:
            found.append(Segment(name, files.size(folder / each)))
    return sorted(found, key=lambda segment: segment.name.serial)


def read_stubbornly(files: FileLayer, path: Path) -> bytes:
    """A file's bytes, with 0xFF for the pages that the disk does not give any more.

    Not with zeros: those would look as if they had never been written.
    Raises FileNotFoundError; OSError where not even its size can be had.
    """
    try:
        return files.read(path)
    except FileNotFoundError:
        raise
    except OSError:
        pages = []
        size = files.size(path)
        for offset in range(0, size, _PAGE_BYTES):
            length = min(_PAGE_BYTES, size - offset)
            try:
                pages.append(files.read(path, offset, length).ljust(length, b"\0"))
            except OSError:
                pages.append(b"\xff" * length)
        return b"".join(pages)


def read_content(data: bytes, segment: Segment) -> Content:
    """The frames in a segment's bytes, as far as they are committed."""
    data = data[: segment.size]
    return Content(data, scan(data, segment.name.marker))


def effective(segments: Sequence[Segment], end: int) -> list[tuple[Segment, int]]:
    """Each segment of one epoch, and the sequence from which on it is void."""
    found = []
    for segment in reversed(segments):
        found.append((segment, end))
        end = min(end, segment.name.first)
    return found[::-1]


def frames_of(
    segments: Sequence[Segment], reader: Reader, *, expected: int, end: int
) -> Iterator[tuple[Segment, Content, Frame]]:
    """The frames of one epoch that hold records from `expected` up to before `end`, in order."""
    for segment, limit in effective(segments, end):
        if limit <= expected:
            continue
        content = reader(segment, expected)
        if content is None:
            continue
        for frame in content.scan.frames:
            head = frame.head
            is_ours = head.epoch == segment.name.epoch and head.blocks
            if is_ours and head.first < limit and head.next_sequence > expected:
                yield segment, content, frame


@dataclass(frozen=True, slots=True)
class ChainSpan:
    """What of an epoch is asked for."""

    epoch: int
    after: int
    dropped: int
    """Up to here it was dropped at the bound."""
    acked: int
    end: int
    """The sequence after the last one."""
    end_hash: bytes
    """The chain before `end`."""


def walk(segments: Sequence[Segment], reader: Reader, span: ChainSpan) -> Iterator[Batch | Gap]:
    """Batches of an epoch in order, and gaps (not signed) for what cannot be read.

    Every sequence after `span.after` and before `span.end` is in exactly one of them, but that a
    batch that holds `span.after` in its middle comes whole.
    """
    pending: Gap | None = None
    for item in _walk(segments, reader, span):
        if isinstance(item, Gap):
            is_same = pending is not None and pending.reason == item.reason
            if pending is not None and is_same and pending.last + 1 == item.first:
                pending = replace(
                    pending, last=item.last, next_previous_hash=item.next_previous_hash
                )
                continue
            if pending is not None:
                yield pending
            pending = item
            continue
        if pending is not None:
            yield pending
            pending = None
        yield item
    if pending is not None:
        yield pending


def _walk(segments: Sequence[Segment], reader: Reader, span: ChainSpan) -> Iterator[Batch | Gap]:
    expected = span.after + 1
    for segment, content, frame in frames_of(segments, reader, expected=expected, end=span.end):
        head = frame.head
        if head.next_sequence <= expected:
            continue  # the same frame twice, by both of its ends
        if head.first > expected:
            yield from _lost(span, expected, head.first - 1, head.previous_hash)
            expected = head.first
        first, previous = head.first, head.previous_hash
        for number, block in enumerate(head.blocks):
            last = first + block.count - 1
            if last >= expected:
                records = frame.records(content.data, number)
                if records is None:
                    segment.is_damaged = True
                    yield Gap(span.epoch, expected, last, DAMAGED, block.hash)
                else:
                    yield Batch(
                        span.epoch,
                        head.boot_id,
                        head.host_id,
                        first,
                        records,
                        previous,
                        block.hash,
                        block.signature,
                    )
                expected = last + 1
            first, previous = last + 1, block.hash
    if expected < span.end:
        yield from _lost(span, expected, span.end - 1, span.end_hash)


def _lost(span: ChainSpan, first: int, last: int, following: bytes) -> Iterator[Gap]:
    if last - first + 1 == FRAME_RECORDS:
        # What an open passes over where it cannot tell whether a frame was there.
        yield Gap(span.epoch, first, last, TORN, following)
        return
    if first <= span.acked:
        yield Gap(span.epoch, first, min(last, span.acked), DELIVERED, following)
        first = span.acked + 1
    if first <= min(last, span.dropped):
        yield Gap(span.epoch, first, min(last, span.dropped), DROPPED, following)
        first = span.dropped + 1
    if first <= last:
        yield Gap(span.epoch, first, last, MISSING, following)
