# SPDX-License-Identifier: Apache-2.0
"""What the ledger's folder holds after whatever has happened: read only, nothing is changed.

The newest frame that can be recognized says what was committed. Behind it there may be a write
that never ended (it does not count: its commit was never answered), or damage in which a frame
may have been: then FRAME_RECORDS sequences are passed over, so that none is ever given twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from licagent.store.filelayer import FileLayer
from licagent.store.frame_heads import ChainEntry, Head
from licagent.store.frames import Frame, Tail
from licagent.store.ledger_types import FRAME_RECORDS, NO_HASH, EpochState, Gap
from licagent.store.segments import (
    TORN,
    ChainSpan,
    Content,
    Segment,
    listed,
    read_content,
    read_stubbornly,
)


@dataclass(slots=True)
class Chain:
    """An epoch, as the ledger goes on with it."""

    epoch: int
    public_key: bytes
    host_id: str = ""
    boot_id: str = ""
    acked: int = 0
    acked_hash: bytes = NO_HASH
    dropped: int = 0
    next_sequence: int = 1
    last_hash: bytes = NO_HASH
    is_closed: bool = False
    durable_acked: int = 0
    """As the newest frame has it."""

    @classmethod
    def of(cls, entry: ChainEntry) -> Chain:
        """As a frame remembers it."""
        return cls(
            entry.epoch,
            entry.public_key,
            entry.host_id,
            "",
            entry.acked,
            entry.acked_hash,
            entry.dropped,
            entry.next_sequence,
            entry.last_hash,
            entry.is_closed,
            entry.acked,
        )

    def entry(self) -> ChainEntry:
        """For a frame to remember."""
        return ChainEntry(
            self.epoch,
            self.public_key,
            self.host_id,
            self.acked,
            self.acked_hash,
            self.dropped,
            self.next_sequence,
            self.last_hash,
            self.is_closed,
        )

    @property
    def is_done(self) -> bool:
        """Whether nothing of it is to be delivered."""
        return self.is_closed or self.acked >= self.next_sequence - 1

    def span(self, after: int) -> ChainSpan:
        """What follows `after`."""
        return ChainSpan(
            self.epoch, after, self.dropped, self.acked, self.next_sequence, self.last_hash
        )

    def state(self, first_held: int, *, is_current: bool) -> EpochState:
        """For those who deliver it."""
        return EpochState(
            self.epoch,
            self.public_key,
            self.boot_id,
            first_held,
            self.next_sequence,
            self.acked,
            self.acked_hash,
            is_current,
        )


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest frame."""

    segment: Segment
    offset: int
    data: bytes
    head: Head

    def before(self, span: ChainSpan) -> ChainSpan:
        """What of a span was committed before this frame."""
        if span.epoch != self.head.epoch:
            return span
        return replace(span, end=self.head.first, end_hash=self.head.previous_hash)


@dataclass(slots=True)
class Recovered:
    """What was found."""

    segments: list[Segment] = field(default_factory=list)
    """Without `torn`."""
    chains: dict[int, Chain] = field(default_factory=dict)
    """Oldest first; the last one is that of the newest frame. Empty: there is no frame."""
    marks: dict[str, bytes] = field(default_factory=dict)
    newest: Newest | None = None
    """To be written again before it is believed."""
    torn: list[Segment] = field(default_factory=list)
    """Files whose first frame was never whole: they are to be removed, durably."""
    is_end_damaged: bool = False
    """What the newest epoch's last frames were is not known: go on in another one, for the
    server may have them, under hashes that nobody here knows any more."""
    next_serial: int = 1
    problems: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    """Of epochs that no frame knows any more: nobody can be told of them but people."""


def recover(files: FileLayer, folder: Path) -> Recovered:
    """Read the folder's newest frame. Raises OSError."""
    found = Recovered(listed(files, folder))
    if found.segments:
        found.next_serial = found.segments[-1].name.serial + 1
    later: list[tuple[Segment, Tail]] = []
    for segment in reversed(found.segments):
        content = read_content(read_stubbornly(files, folder / str(segment.name)), segment)
        if content.scan.frames:
            _take(found, segment, content, later)
            break
        later.append((segment, content.scan.tail))
    else:
        if any(tail is Tail.DAMAGED for _, tail in later):
            found.problems.append("no frame of the ledger can be read: it begins anew")
    for segment, tail in later:
        if tail is Tail.DAMAGED:
            segment.is_damaged = True
            found.problems.append(f"{segment.name} is damaged: no frame in it can be read")
            first = segment.name.first
            if segment.name.epoch not in found.chains:
                last = first + FRAME_RECORDS - 1
                found.gaps.append(Gap(segment.name.epoch, first, last, TORN, NO_HASH))
        else:
            found.segments.remove(segment)
            found.torn.append(segment)
    return found


def _take(
    found: Recovered, segment: Segment, content: Content, later: list[tuple[Segment, Tail]]
) -> None:
    frame = content.scan.frames[-1]
    head = frame.head
    entries = {entry.epoch: Chain.of(entry) for entry in head.chains}
    chain = entries.pop(head.epoch, None) or Chain(head.epoch, head.public_key)
    chain.boot_id = head.boot_id
    chain.host_id = head.host_id or chain.host_id
    chain.next_sequence = _next(found, head.next_sequence, segment, content.scan.tail, later)
    chain.last_hash = head.last_hash
    found.chains = entries | {head.epoch: chain}
    found.marks, is_whole = frame.marks(content.data)
    if not is_whole:
        found.problems.append(
            "the newest frame is damaged and with it the larger marks: what was measured between "
            "it and the next one has no baseline"
        )
    _note_damage(found, segment, content, frame)
    data = content.data[frame.offset : frame.offset + frame.length]
    found.newest = Newest(segment, frame.offset, data, head)


def _next(
    found: Recovered,
    following: int,
    segment: Segment,
    tail: Tail,
    later: list[tuple[Segment, Tail]],
) -> int:
    """The sequence after all that may ever have been given in the epoch."""
    same = [(each, its) for each, its in later if each.name.epoch == segment.name.epoch]
    following = max([following, *(each.name.first for each, _ in same)])
    is_damaged = any(its is Tail.DAMAGED for _, its in same)
    if not later:  # otherwise what is behind the frame was void already
        is_damaged = tail is Tail.DAMAGED
    if not is_damaged:
        return following
    found.is_end_damaged = True
    found.problems.append(
        f"the end of the ledger is damaged: sequences {following} to "
        f"{following + FRAME_RECORDS - 1} are passed over, in case they were given"
    )
    return following + FRAME_RECORDS


def _note_damage(found: Recovered, segment: Segment, content: Content, newest: Frame) -> None:
    blocks = range(len(newest.head.blocks))
    if content.scan.damaged_bytes or any(
        newest.records(content.data, number) is None for number in blocks
    ):
        segment.is_damaged = True
        found.problems.append(f"{segment.name} is damaged")
