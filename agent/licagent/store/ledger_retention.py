# SPDX-License-Identifier: Apache-2.0
"""Which segments of the ledger may go, and how they go."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from licagent.store.filelayer import FileLayer
from licagent.store.ledger_recovery import Chain
from licagent.store.ledger_types import LedgerLimits
from licagent.store.segments import Segment, effective

_DAMAGED: Final = ".damaged"
_DAMAGED_KEPT: Final = 4
"""Damaged segments that stay for whoever wants to look at them."""
_NO_END: Final = 2**63


def ends(segments: Sequence[Segment], chains: Mapping[int, Chain]) -> Iterator[tuple[Segment, int]]:
    """Each segment, and the sequence before which its records end."""
    by_epoch: dict[int, list[Segment]] = {}
    for segment in segments:
        by_epoch.setdefault(segment.name.epoch, []).append(segment)
    limit: dict[int, int] = {}
    for epoch, its in by_epoch.items():
        chain = chains.get(epoch)
        end = chain.next_sequence if chain is not None else _NO_END
        limit |= {segment.name.serial: upto for segment, upto in effective(its, end)}
    for segment in segments:
        yield segment, limit[segment.name.serial]


class Retention:
    """Drops segments. The caller has the folder's lock."""

    def __init__(self, folder: Path, files: FileLayer, limits: LedgerLimits) -> None:
        self._folder = folder
        self._files = files
        self._limits = limits

    def acknowledged(
        self, segments: Sequence[Segment], chains: Mapping[int, Chain], *, durable: bool
    ) -> list[Segment]:
        """Those that nobody waits for, oldest first; never the newest, which has the marks.

        `durable`: only as far as the newest frame knows of the acknowledgement.
        """
        found = []
        for segment, end in list(ends(segments, chains))[:-1]:
            chain = chains.get(segment.name.epoch)
            if chain is not None and not chain.is_closed:
                acked = chain.durable_acked if durable else chain.acked
                if acked < end - 1:
                    continue
            found.append(segment)
        return found

    def expired(
        self, segments: Sequence[Segment], chains: Mapping[int, Chain], now_unix_ms: int
    ) -> list[Segment]:
        """The acknowledged ones that are too old, or too many."""
        candidates = self.acknowledged(segments, chains, durable=True)
        total = sum(segment.size for segment in candidates)
        following = {
            one.name.serial: other.name.begun_unix_ms for one, other in itertools.pairwise(segments)
        }
        found = []
        for segment in candidates:
            age = now_unix_ms - following[segment.name.serial]
            if total <= self._limits.keep_acknowledged_bytes and (
                age <= self._limits.keep_acknowledged_ms
            ):
                continue
            found.append(segment)
            total -= segment.size
        return found

    def remove(self, segments: Sequence[Segment]) -> list[Segment]:
        """Drop them; those that went. A damaged one is set aside under another name."""
        gone = []
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
            gone.append(segment)
        if gone:
            with contextlib.suppress(OSError):
                # A power cut may bring them back: they are known to be acknowledged then.
                self._files.fsync_folder(self._folder)
                if any(segment.is_damaged for segment in gone):
                    self._prune()
        return gone

    def _prune(self) -> None:
        names = sorted(name for name in self._files.names(self._folder) if name.endswith(_DAMAGED))
        for name in names[:-_DAMAGED_KEPT]:
            self._files.unlink(self._folder / name)
