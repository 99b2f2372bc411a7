# SPDX-License-Identifier: Apache-2.0
"""Checking a ledger's folder from end to end, also while a daemon writes to it, or without one.

What it proves: nobody without the epoch's key has altered, added or removed a record, but for
whole segments at the beginning that the newest frame knows to be acknowledged or dropped. The
host has the key: against its root, the acknowledged chain at the control plane is the proof.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from licagent.store.errors import StateWriteFailed
from licagent.store.filelayer import FileLayer, OsFiles
from licagent.store.ledger_recovery import Chain, Recovered, recover
from licagent.store.ledger_types import NO_HASH, Batch, Gap, VerifyReport
from licagent.store.segments import (
    DAMAGED,
    ChainSpan,
    Content,
    Segment,
    SegmentName,
    frames_of,
    read_content,
    read_stubbornly,
    walk,
)
from licagent.store.usagechain import batch_message, chain_hash, is_signed

_TRIES: Final = 20
_FRAME_S: Final = 0.5
"""How long a daemon may take from dropping what was delivered to the frame that says so."""


def verify_folder(folder: Path, files: FileLayer | None = None) -> VerifyReport:
    """Read everything and change nothing. Raises StateWriteFailed where it cannot be read."""
    files = files or OsFiles()
    for tries_left in range(_TRIES - 1, -1, -1):
        try:
            found = recover(files, folder)
            check = _Check(folder, files)
            report = check.report(found.segments, found.chains, found.problems)
            if check.lacks_beginning and tries_left and _has_new_frame(files, folder, found):
                continue
            return report
        except OSError as error:
            if isinstance(error, FileNotFoundError) and tries_left:
                continue  # a daemon dropped a segment meanwhile
            raise StateWriteFailed(
                f"cannot read the ledger in {folder}: {error.strerror}"
            ) from error
    raise AssertionError("the last try returned or raised")


def _has_new_frame(files: FileLayer, folder: Path, found: Recovered) -> bool:
    """Whether a daemon writes: one that makes room drops what was delivered before the frame
    that says so, which follows at once.
    """
    until = time.monotonic() + _FRAME_S
    while True:
        newest = recover(files, folder).newest
        if newest is None or found.newest is None:
            return False
        if (newest.segment.name, newest.offset) != (found.newest.segment.name, found.newest.offset):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_FRAME_S / 100)


class _Check:
    lacks_beginning = False
    """Whether the oldest records of an epoch are gone and nothing there says why."""

    def __init__(self, folder: Path, files: FileLayer) -> None:
        self._folder = folder
        self._files = files
        self._frames = self._batches = self._records = 0
        self._gaps: list[Gap] = []
        self._problems: list[str] = []
        self._vanished: list[SegmentName] = []
        self._read: tuple[Segment, Content] | None = None

    def report(
        self, segments: Sequence[Segment], chains: dict[int, Chain], problems: list[str]
    ) -> VerifyReport:
        by_epoch: dict[int, list[Segment]] = {}
        for segment in segments:
            by_epoch.setdefault(segment.name.epoch, []).append(segment)
        firsts, lasts = [], []
        for epoch, its in by_epoch.items():
            chain = chains.get(epoch)
            span = self._span(epoch, its, chain)
            firsts.append(span.after + 1)
            lasts.append(span.end - 1)
            self._epoch(its, span)
        return VerifyReport(
            len(segments),
            self._frames,
            self._batches,
            self._records,
            firsts[0] if firsts else 0,
            lasts[-1] if lasts else 0,
            tuple(by_epoch),
            tuple(self._gaps),
            tuple(problems + self._problems),
        )

    def _span(self, epoch: int, segments: list[Segment], chain: Chain | None) -> ChainSpan:
        held = segments[0].name.first - 1
        if chain is not None:
            gone = max(
                chain.acked, chain.dropped, chain.next_sequence - 1 if chain.is_closed else 0
            )
            return chain.span(min(held, gone))
        end, end_hash = held + 1, NO_HASH  # delivered long ago: as far as it goes
        for _, _, frame in frames_of(segments, self._content, expected=1, end=2**63):
            end, end_hash = frame.head.next_sequence, frame.head.last_hash
        return ChainSpan(epoch, held, 0, 0, end, end_hash)

    def _epoch(self, segments: list[Segment], span: ChainSpan) -> None:
        keys = set(self._keys(segments, span))
        if len(keys) > 1:
            self._problems.append(f"epoch {span.epoch} has frames of {len(keys)} keys")
        key = next(iter(keys), b"")
        expected = NO_HASH if span.after == 0 else None
        for item in walk(segments, self._content, span):
            if isinstance(item, Gap):
                if not self._was_dropped(item):
                    self._gaps.append(item)
                    self.lacks_beginning |= item.last < segments[0].name.first
                expected = item.next_previous_hash
                continue
            self._batch(item, key, expected)
            expected = item.hash

    def _keys(self, segments: list[Segment], span: ChainSpan) -> Iterator[bytes]:
        for _, content, frame in frames_of(
            segments, self._content, expected=span.after + 1, end=span.end
        ):
            self._frames += 1
            if content.scan.damaged_bytes:
                place = f"{frame.head.epoch}: {content.scan.damaged_bytes} bytes"
                note = f"a segment of epoch {place} between its frames are damaged"
                if note not in self._problems:
                    self._problems.append(note)
            yield frame.head.public_key

    def _batch(self, batch: Batch, key: bytes, expected: bytes | None) -> None:
        self._batches += 1
        self._records += len(batch.records)
        where = f"records {batch.first} to {batch.last} of epoch {batch.epoch}"
        if expected is not None and batch.previous_hash != expected:
            self._problems.append(f"{where}: they do not follow what is before them")
        if chain_hash(batch.previous_hash, batch.first, batch.records) != batch.hash:
            self._problems.append(f"{where}: altered, the chain does not fit")
        message = batch_message(
            host_id=batch.host_id,
            boot_id=batch.boot_id,
            epoch=batch.epoch,
            first=batch.first,
            last=batch.last,
            chain=batch.hash,
        )
        if not is_signed(key, batch.signature, message):
            self._problems.append(f"{where}: the signature is not the epoch's")

    def _was_dropped(self, gap: Gap) -> bool:
        return gap.reason != DAMAGED and any(
            name.epoch == gap.epoch and name.first <= gap.first for name in self._vanished
        )

    def _content(self, segment: Segment, _expected: int) -> Content | None:
        if self._read is not None and self._read[0] is segment:
            return self._read[1]
        try:
            data = read_stubbornly(self._files, self._folder / str(segment.name))
        except FileNotFoundError:
            self._vanished.append(segment.name)  # dropped since the folder was listed
            return None
        segment.size = len(data)
        content = read_content(data, segment)
        self._read = segment, content
        return content
