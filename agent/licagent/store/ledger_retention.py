# SPDX-License-Identifier: Apache-2.0
"""The ledger's segments within their bound: which may go, and how they go."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from licagent.store.filelayer import FileLayer
from licagent.store.ledger_epochs import Epochs, Findings
from licagent.store.ledger_recovery import Chain
from licagent.store.ledger_types import Gap, LedgerFull, LedgerLimits
from licagent.store.segments import DROPPED, Segment, effective

_DAMAGED: Final = ".damaged"
_DAMAGED_KEPT: Final = 4
"""Damaged segments that stay for whoever wants to look at them."""
_SEGMENTS_AT_LEAST: Final = 8
_FACTOR_MAX: Final = 1024
_NO_END: Final = 2**63


def ends(segments: Sequence[Segment], chains: Mapping[int, Chain]) -> list[tuple[Segment, int]]:
    """Each segment, and the sequence before which its records end."""
    by_epoch: dict[int, list[Segment]] = {}
    segments = tuple(segments)  # a writer may add one meanwhile
    for segment in segments:
        by_epoch.setdefault(segment.name.epoch, []).append(segment)
    limit: dict[int, int] = {}
    for epoch, its in by_epoch.items():
        chain = chains.get(epoch)
        end = chain.next_sequence if chain is not None else _NO_END
        limit |= {segment.name.serial: upto for segment, upto in effective(its, end)}
    return [(segment, limit[segment.name.serial]) for segment in segments]


class Shelf:
    """The segments that are there, within their bound. The caller serializes calls."""

    def __init__(
        self,
        folder: Path,
        files: FileLayer,
        limits: LedgerLimits,
        *,
        segments: list[Segment],
        epochs: Epochs,
        findings: Findings,
    ) -> None:
        self._folder = folder
        self._files = files
        self.limits = limits
        self.segments = segments
        self._epochs = epochs
        self._findings = findings

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum(segment.size for segment in self.segments)

    @property
    def segment_bytes(self) -> int:
        """How long one gets: short enough for the bound to hold several."""
        bound = self.limits.spool_max_bytes // _SEGMENTS_AT_LEAST
        return min(self.limits.segment_bytes, bound)

    @property
    def interval_factor(self) -> int:
        """See `Ledger.interval_factor`."""
        if self.limits.when_full == "drop_oldest":
            return 1  # it is never full
        waste = sum(segment.size for segment in self._acknowledged(durable=False))
        free = max(self.limits.spool_max_bytes - (self.size_bytes - waste), 1)
        factor = 1
        while factor < _FACTOR_MAX and free * factor * 2 <= self.limits.spool_max_bytes:
            factor *= 2
        return factor

    def of_epoch(self, epoch: int) -> list[Segment]:
        """Its segments, in order."""
        return [each for each in self.segments if each.name.epoch == epoch]

    def first_held(self, chain: Chain) -> int:
        """Its oldest sequence; `next_sequence` where nothing is left."""
        its = (each.name.first for each in self.of_epoch(chain.epoch))
        return min(its, default=chain.next_sequence)

    def holds(self, segment: Segment) -> bool:
        """Whether it was not dropped."""
        return any(each is segment for each in self.segments)

    def add(self, segment: Segment) -> None:
        """One that has got a frame; known already or not."""
        if segment not in self.segments[-1:]:
            self.segments.append(segment)

    def make_room(self, frame_bytes: int) -> bool:
        """Stay within the bound; whether something went that nobody had acknowledged.

        Raises LedgerFull, where that must not go.
        """
        bound = self.limits.spool_max_bytes - frame_bytes
        for durable in (True, False):
            # What was acknowledged since the newest frame goes last: after a crash only the
            # server knows of it.
            for segment in self._acknowledged(durable=durable):
                if self.size_bytes <= bound:
                    return False
                self._remove([segment])
        has_dropped = False
        while self.size_bytes > bound:
            if self.limits.when_full == "hold" or not self._drop_oldest():
                raise LedgerFull(
                    f"the ledger is full ({self.size_bytes} of {self.limits.spool_max_bytes} "
                    "bytes, nothing acknowledged): usage is kept in the kernel"
                )
            has_dropped = True
        return has_dropped

    def drop_acknowledged(self) -> bool:
        """All of it: the disk is full. Whether something went."""
        return self._remove(self._acknowledged(durable=False))

    def expire(self, now_unix_ms: int) -> None:
        """Drop the acknowledged ones that are too old, or too many."""
        candidates = self._acknowledged(durable=True)
        total = sum(segment.size for segment in candidates)
        following = {
            one.name.serial: other.name.begun_unix_ms
            for one, other in itertools.pairwise(self.segments)
        }
        expired = []
        for segment in candidates:
            age = now_unix_ms - following[segment.name.serial]
            is_much = total > self.limits.keep_acknowledged_bytes
            if is_much or age > self.limits.keep_acknowledged_ms:
                expired.append(segment)
                total -= segment.size
        self._remove(expired)

    def _acknowledged(self, *, durable: bool) -> list[Segment]:
        """Those that nobody waits for, oldest first; never the newest, which has the marks.

        `durable`: only as far as the newest frame knows of the acknowledgement.
        """
        found = []
        for segment, end in ends(self.segments, self._epochs.chains)[:-1]:
            chain = self._epochs.chains.get(segment.name.epoch)
            if chain is not None and not chain.is_closed:
                acked = chain.durable_acked if durable else chain.acked
                if acked < end - 1:
                    continue
            found.append(segment)
        return found

    def _drop_oldest(self) -> bool:
        if len(self.segments) < 2:
            return False
        segment, end = ends(self.segments, self._epochs.chains)[0]
        if not self._remove([segment]):
            return False
        chain = self._epochs.chains.get(segment.name.epoch)
        if chain is not None and chain.dropped < end - 1:
            first = max(chain.dropped, chain.acked) + 1
            chain.dropped = end - 1
            if first < end:
                self._findings.add(Gap(chain.epoch, first, end - 1, DROPPED, chain.last_hash))
        return True

    def _remove(self, segments: Sequence[Segment]) -> bool:
        """Whether at least one went. A damaged one is set aside under another name."""
        gone = set()
        for segment in segments:
            path = self._folder / str(segment.name)
            try:
                if segment.is_damaged:
                    self._files.rename(path, path.with_name(path.name + _DAMAGED))
                else:
                    self._files.unlink(path)
            except FileNotFoundError:
                pass
            except OSError:
                continue  # it stays, and is tried again
            gone.add(segment.name.serial)
        if not gone:
            return False
        # A new list: others may be reading the old one.
        self.segments = [each for each in self.segments if each.name.serial not in gone]
        with contextlib.suppress(OSError):
            # A power cut may bring them back: they are known to be acknowledged then.
            self._files.fsync_folder(self._folder)
            if any(segment.is_damaged for segment in segments):
                self._prune()
        return True

    def _prune(self) -> None:
        names = sorted(name for name in self._files.names(self._folder) if name.endswith(_DAMAGED))
        for name in names[:-_DAMAGED_KEPT]:
            self._files.unlink(self._folder / name)
