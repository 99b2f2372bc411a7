# SPDX-License-Identifier: Apache-2.0
"""Giving the ledger's records out, and believing who has them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from licagent.store.ledger_epochs import Epochs, Findings
from licagent.store.ledger_reading import Dropped, SegmentReader
from licagent.store.ledger_recovery import Newest
from licagent.store.ledger_retention import Shelf, ends
from licagent.store.ledger_types import Batch, EpochState, Gap
from licagent.store.segments import Segment, frames_of, walk
from licagent.store.usagechain import chain_hash, gap_message

_DAY_MS: Final = 24 * 3600 * 1000


class Delivery:
    """Reads without the lock what was committed; takes it for what changes."""

    def __init__(
        self,
        lock: threading.RLock,
        epochs: Epochs,
        shelf: Shelf,
        reader: SegmentReader,
        findings: Findings,
        *,
        host_id: Callable[[], str],
        unsettled: Callable[[], Newest | None],
    ) -> None:
        """`unsettled`: the newest frame while it is not known to be on the disk."""
        self._lock = lock
        self._epochs = epochs
        self._shelf = shelf
        self._reader = reader
        self._findings = findings
        self._host_id = host_id
        self._unsettled = unsettled
        self._sent: dict[int, dict[int, bytes]] = {}
        """By epoch: where something ends that was given out, and the chain there."""

    def epochs(self) -> tuple[EpochState, ...]:
        """See `Ledger.epochs`."""
        current = self._epochs.current
        return tuple(
            chain.state(self._shelf.first_held(chain), is_current=chain is current)
            for chain in tuple(self._epochs.chains.values())
            if not chain.is_done or chain is current
        )

    def past_epochs(self) -> tuple[EpochState, ...]:
        """See `Ledger.past_epochs`."""
        held = {segment.name.epoch for segment in tuple(self._shelf.segments)}
        return tuple(
            chain.state(self._shelf.first_held(chain), is_current=False)
            for chain in tuple(self._epochs.chains.values())
            if chain.is_done
            and not chain.is_closed
            and chain is not self._epochs.current
            and chain.epoch in held
        )

    def batches(self, epoch: int, after: int, limit_bytes: int) -> Iterator[Batch | Gap]:
        """See `Ledger.batches`."""
        taken = 0
        for item in self._items(epoch, after):
            if isinstance(item, Gap):
                gap = self._signed(item)
                self._remember(gap.epoch, gap.last, gap.next_previous_hash)
                yield gap
            else:
                self._remember(item.epoch, item.last, item.hash)
                taken += sum(map(len, item.records))
                yield item
            if taken >= limit_bytes:
                return

    def acknowledge(self, epoch: int, sequence: int, chain_there: bytes) -> bool:
        """See `Ledger.acknowledge`."""
        with self._lock:
            chain = self._epochs.chains.get(epoch)
            if chain is None or chain.is_closed or not 0 <= sequence < chain.next_sequence:
                return False
            if sequence <= chain.acked:
                return sequence != chain.acked or chain_there == chain.acked_hash
            known = self._sent.get(epoch, {}).get(sequence)
        if (known or self._hash_at(epoch, sequence)) != chain_there:
            return False
        with self._lock:
            if sequence > chain.acked:
                chain.acked, chain.acked_hash = sequence, chain_there
                its = self._sent.get(epoch, {})
                self._sent[epoch] = {last: each for last, each in its.items() if last > sequence}
        return True

    def forget(self, epoch: int) -> None:
        """Nothing more of it is given out."""
        self._sent.pop(epoch, None)

    def records(self, since_unix_ms: int) -> Iterator[tuple[int, bytes]]:
        """See `Ledger.records`."""
        for segment, end in self._since(since_unix_ms):
            yield from self._records_of(segment, end, since_unix_ms)
        self._reader.forget()

    def newest_first(self, since_unix_ms: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """See `Ledger.newest_first`."""
        for segment, end in reversed(self._since(since_unix_ms)):
            its = self._records_of(segment, end, since_unix_ms)
            yield segment.name.begun_unix_ms, (payload for _sequence, payload in its)
        self._reader.forget()

    def _since(self, since_unix_ms: int) -> list[tuple[Segment, int]]:
        with self._lock:
            segments = list(self._shelf.segments)
            chains = dict(self._epochs.chains)
        # A day's allowance for a clock that was set back in between.
        oldest_ms = since_unix_ms - _DAY_MS
        begun = [segment.name.begun_unix_ms for segment in segments[1:]]
        return [
            each
            for number, each in enumerate(ends(segments, chains))
            if number == len(begun) or begun[number] >= oldest_ms
        ]

    def _records_of(
        self, segment: Segment, end: int, since_unix_ms: int
    ) -> Iterator[tuple[int, bytes]]:
        with contextlib.suppress(Dropped):
            for _, content, frame in frames_of([segment], self._reader, expected=1, end=end):
                if frame.head.at_unix_ms < since_unix_ms:
                    continue
                sequence = frame.head.first
                for index, block in enumerate(frame.head.blocks):
                    found = frame.records(content.data, index) or ()
                    yield from enumerate(found, sequence)
                    sequence += block.count

    def _items(self, epoch: int, after: int, *, to_send: bool = True) -> Iterator[Batch | Gap]:
        with self._lock:
            chain = self._epochs.chains.get(epoch)
            if chain is None or chain.is_closed:
                return
            segments = self._shelf.of_epoch(epoch)
            span = chain.span(max(after, 0))
            newest = self._unsettled() if to_send else None
            if newest is not None:
                # A frame that a power cut may still take must not be told of: its sequences
                # would be given again.
                span = newest.before(span)
        try:
            yield from walk(segments, self._reader, span)
        except Dropped:
            return  # acknowledged meanwhile: whoever asks again gets what follows
        self._reader.forget()

    def _signed(self, gap: Gap) -> Gap:
        with self._lock:
            key = self._epochs.key_of(gap.epoch)
            if key is not None:
                message = gap_message(
                    host_id=self._host_id(),
                    epoch=gap.epoch,
                    first=gap.first,
                    last=gap.last,
                    next_previous_hash=gap.next_previous_hash,
                    reason=gap.reason,
                )
                gap = replace(gap, signature=key.sign(message))
            self._findings.add(gap)
            return gap

    def _remember(self, epoch: int, last: int, hash_: bytes) -> None:
        with self._lock:
            self._sent.setdefault(epoch, {})[last] = hash_

    def _hash_at(self, epoch: int, sequence: int) -> bytes | None:
        """The chain after `sequence`, from the disk; None where nobody knows it."""
        for item in self._items(epoch, sequence - 1, to_send=False):
            if isinstance(item, Gap):
                return item.next_previous_hash if item.last == sequence else None
            count = sequence - item.first + 1
            return chain_hash(item.previous_hash, item.first, item.records[:count])
        return None
