# SPDX-License-Identifier: Apache-2.0
"""The ledger of usage: signed, chained records that are committed once and delivered once.

A commit is one frame in one segment file, synced before `commit` returns: its records, their
sequence numbers, the chain's hash, the signatures, and the *marks* with which the caller knows
what the frame stood for (which sheet of the kernel, which baselines). Whoever finds the marks
finds the records, and the other way round.

Records belong to an *epoch*, a chain with a key of its own. A new one begins with an empty
folder, when the key is lost, when the host has become another one, when the server's chain is
not ours any more, and on request, so that what is used now need not wait behind a backlog.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from licagent.store.epochkeys import EpochKeys, new_epoch, write_all
from licagent.store.errors import StateWriteFailed
from licagent.store.filelayer import FileLayer, OsFiles
from licagent.store.frames import Block, ChainEntry, Head, encode, pack, pack_marks, split
from licagent.store.ledger_reading import Dropped, SegmentReader
from licagent.store.ledger_recovery import Chain, recover
from licagent.store.ledger_retention import Retention, ends
from licagent.store.ledger_types import (
    FRAME_RECORDS,
    PAYLOAD_MAX_BYTES,
    Batch,
    Committed,
    EpochState,
    Gap,
    LedgerBlocked,
    LedgerBusy,
    LedgerFull,
    LedgerLimits,
    VerifyReport,
)
from licagent.store.ledger_verify import verify_folder
from licagent.store.segments import DROPPED, Segment, frames_of, walk
from licagent.store.spool import SpoolWriter
from licagent.store.usagechain import EpochKey, batch_message, chain_hash, gap_message

__all__ = [
    "Batch",
    "Committed",
    "EpochState",
    "Gap",
    "Ledger",
    "LedgerBlocked",
    "LedgerBusy",
    "LedgerFull",
    "LedgerLimits",
    "VerifyReport",
]


_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_MARKS_MAX_BYTES: Final = 16 * 1024 * 1024
_SEGMENTS_AT_LEAST: Final = 8
_FACTOR_MAX: Final = 1024
_NOTES: Final = 32
_DAY_MS: Final = 24 * 3600 * 1000


class Ledger:
    """One folder, one writer (a second one gets LedgerBusy). Methods block; any thread may call."""

    def __init__(
        self,
        folder: Path,
        *,
        boot_id: str,
        host_id: Callable[[], str] = lambda: "",
        limits: LedgerLimits | None = None,
        files: FileLayer | None = None,
        now_unix_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Open what is there. Raises LedgerBusy; StateWriteFailed where there is no such folder
        and none can be made, or it cannot be read.

        A disk that cannot be written does not raise here: `settled` is False then.
        """
        self._folder = folder
        self._boot_id = boot_id
        self._host_id = host_id
        self._limits = limits or LedgerLimits()
        self._files = files = files or OsFiles()
        self._now = now_unix_ms
        self._lock = threading.RLock()
        self._lock_handle = self._take_folder()
        try:
            self._keys_file = EpochKeys(folder, files)
            found = recover(files, folder)
            keys, key_problem = self._keys_file.load()
        except OSError as error:
            files.close(self._lock_handle)
            raise StateWriteFailed(
                f"cannot read the ledger in {folder}: {error.strerror}. Nothing is billed "
                "until it can be read"
            ) from error
        self._notes = deque(found.problems, maxlen=_NOTES)
        if key_problem:
            self._notes.append(f"the ledger's keys are damaged ({key_problem})")
        self._segments = found.segments
        self._chains = found.chains
        self._marks = found.marks
        self._unsettled, self._torn = found.newest, found.torn
        self._settled = False
        self._trouble = ""
        self._gaps: dict[tuple[int, int], Gap] = {}
        self._sent: dict[int, dict[int, bytes]] = {}
        self._writer = SpoolWriter(folder, files, found.next_serial)
        self._retention = Retention(folder, files, self._limits)
        self._reader = SegmentReader(
            folder, files, offset_of=self._writer.offset_of, is_held=self._is_held
        )
        self._keys = keys
        self._keys_saved = True
        self._current: Chain
        self._choose_epoch()
        with contextlib.suppress(LedgerBlocked):
            self.settle()

    # ---- what there is

    @property
    def settled(self) -> bool:
        """Whether the newest frame is known to be on the disk, so that `marks` may be acted on.

        False after an open on a disk that refuses: discard nothing on the strength of `marks`
        until `settle` or `commit` returned.
        """
        return self._settled

    def settle(self) -> None:
        """Make sure of the newest frame. Raises LedgerBlocked.

        The frame may be in the kernel's memory only: its writer was killed before the fsync
        returned, or the fsync failed, after which the kernel takes the pages for written. So it
        is written once more, the same bytes at the same place, and synced.
        """
        with self._lock:
            if self._settled:
                return
            try:
                for segment in self._torn:
                    with contextlib.suppress(FileNotFoundError):
                        self._files.unlink(self._folder / str(segment.name))
                if self._unsettled is not None:
                    newest = self._unsettled
                    handle = self._files.open(self._folder / str(newest.segment.name))
                    try:
                        write_all(self._files, handle, newest.data, newest.offset)
                        self._files.fsync(handle)
                    finally:
                        self._files.close(handle)
                self._files.fsync_folder(self._folder)
            except OSError as error:
                raise self._blocked(error) from error
            self._unsettled, self._torn = None, []
            self._settled = True
            self._trouble = ""

    @property
    def marks(self) -> Mapping[str, bytes]:
        """The marks of the newest commit; empty on a new ledger.

        Without the ones beyond 64 bytes if that frame is damaged: take a new baseline then, what
        was used since the old one is lost (and stands in `problems`).
        """
        return self._marks

    @property
    def epoch(self) -> int:
        """The oldest epoch that has something to deliver, else the current one.

        When it changes (the old one is wholly acknowledged), begin a new stream with a new hello.
        """
        return self._delivering().epoch

    @property
    def public_key(self) -> bytes:
        """Of `epoch`; Ed25519, 32 bytes."""
        return self._delivering().public_key

    @property
    def boot_id(self) -> str:
        """Of this boot; batches carry that of theirs."""
        return self._boot_id

    @property
    def next_sequence(self) -> int:
        """The sequence after the last one of `epoch`."""
        return self._delivering().next_sequence

    @property
    def first_unacknowledged(self) -> int:
        """In `epoch`; equals `next_sequence` when all is delivered."""
        return self._delivering().acked + 1

    @property
    def acknowledged(self) -> tuple[int, bytes]:
        """The last acknowledged sequence of `epoch` and the chain's hash there; (0, zeros)."""
        chain = self._delivering()
        return chain.acked, chain.acked_hash

    def epochs(self) -> tuple[EpochState, ...]:
        """Those with something to deliver, oldest first, and the current one as the last.

        Each is a stream of its own for the control plane: a client that delivers them side by
        side keeps the newest from waiting behind a backlog (see `begin_epoch`).
        """
        with self._lock:
            return tuple(
                chain.state(self._first_held(chain), is_current=chain is self._current)
                for chain in self._chains.values()
                if not chain.is_done or chain is self._current
            )

    @property
    def backlog_records(self) -> int:
        """Records that are not acknowledged, in all epochs."""
        with self._lock:
            return sum(
                chain.next_sequence - 1 - chain.acked
                for chain in self._chains.values()
                if not chain.is_done
            )

    @property
    def size_bytes(self) -> int:
        """Of all segment files."""
        with self._lock:
            return sum(segment.size for segment in self._segments)

    @property
    def gaps(self) -> Sequence[Gap]:
        """What is known to be lost so far; damage in the middle is found when it is read."""
        with self._lock:
            return tuple(self._gaps.values())

    @property
    def problems(self) -> Sequence[str]:
        """For `status`: what is wrong now, and what was found since the open; for people."""
        with self._lock:
            return tuple([self._trouble] if self._trouble else []) + tuple(self._notes)

    @property
    def trouble(self) -> str:
        """Why the last commit was refused; "" once one was taken."""
        return self._trouble

    @property
    def interval_factor(self) -> int:
        """How many intervals the caller should commit as one: 1, 2, 4 ... 1024.

        It doubles each time that half of what was left of the bound is gone, so that a spool
        that nobody empties becomes coarser instead of full.
        """
        with self._lock:
            waste = self._retention.acknowledged(self._segments, self._chains, durable=False)
            used = self.size_bytes - sum(segment.size for segment in waste)
        free = max(self._limits.spool_max_bytes - used, 1)
        factor = 1
        while factor < _FACTOR_MAX and free * factor * 2 <= self._limits.spool_max_bytes:
            factor *= 2
        return factor

    def set_when_full(self, what: Literal["hold", "drop_oldest"]) -> None:
        """Follow a host that joined a control plane, or left it; see `LedgerLimits`."""
        with self._lock:
            self._limits = replace(self._limits, when_full=what)

    # ---- writing

    def commit(self, payloads: Sequence[bytes], marks: Mapping[str, bytes]) -> Committed:
        """Take records and marks, durably and together, or nothing at all.

        `marks` replaces all earlier marks. Values of at most 64 bytes survive damage to the
        frame; at most 16 MiB in all. Raises LedgerFull (the bound is reached) and LedgerBlocked
        (the disk refuses): nothing is taken, and the same call may be made again. ValueError for
        a record beyond PAYLOAD_MAX_BYTES or more than FRAME_RECORDS of them.
        """
        if len(payloads) > FRAME_RECORDS or sum(map(len, marks.values())) > _MARKS_MAX_BYTES:
            raise ValueError("too much for one commit")
        if max(map(len, payloads), default=0) > PAYLOAD_MAX_BYTES:
            raise ValueError(f"a record is longer than {PAYLOAD_MAX_BYTES} bytes")
        with self._lock:
            self.settle()
            host_id = self._host_id()
            self._follow_host(host_id)
            self._save_keys()
            head, body = self._compose(host_id, payloads, marks)
            segment = self._write(head, body)
            self._taken(head, segment, marks)
            return Committed(head.epoch, head.first, head.next_sequence - 1)

    def begin_epoch(self, reason: str) -> int:
        """Let further commits go to a new epoch; its number. Raises LedgerBlocked.

        The one before stays to be delivered. An epoch that has no records yet is kept.
        """
        with self._lock:
            if self._current.next_sequence == 1 and not self._current.is_closed:
                return self._current.epoch
            before = self._current
            self._add_epoch()
            try:
                self._save_keys()
            except LedgerBlocked:
                del self._chains[self._current.epoch]
                self._current = before
                raise
            self._writer.close()
            self._notes.append(f"a new epoch was begun: {reason}")
            return self._current.epoch

    # ---- delivering

    def batches(
        self, after: int, *, limit_bytes: int, epoch: int | None = None
    ) -> Iterator[Batch | Gap]:
        """What follows sequence `after` in an epoch (None: `epoch`), in order, from the disk.

        Ends after about `limit_bytes` of records (at least one item is given, if there is one).
        A batch that holds `after` in its middle is given whole. Raises LedgerBlocked where the
        disk cannot be read.
        """
        taken = 0
        for item in self._items(self.epoch if epoch is None else epoch, after):
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

    def acknowledge(self, sequence: int, hash: bytes, *, epoch: int | None = None) -> bool:  # noqa: A002
        """Believe that the server has everything up to `sequence` (None: of `epoch`).

        False, and nothing changes, for one beyond what is held or with another hash than ours:
        an alarm for the caller to raise. True, also when it was known already. It becomes
        durable with the next commit; lost in a crash, the server says it again. Raises
        LedgerBlocked where the disk cannot be read.
        """
        number = self.epoch if epoch is None else epoch
        with self._lock:
            chain = self._chains.get(number)
            if chain is None or chain.is_closed or not 0 <= sequence < chain.next_sequence:
                return False
            if sequence <= chain.acked:
                return sequence != chain.acked or hash == chain.acked_hash
            known = self._sent.get(number, {}).get(sequence)
        if (known or self._hash_at(number, sequence)) != hash:
            return False
        with self._lock:
            if sequence > chain.acked:
                chain.acked, chain.acked_hash = sequence, hash
                its = self._sent.get(number, {})
                self._sent[number] = {last: each for last, each in its.items() if last > sequence}
        return True

    def diverged(self, epoch: int, reason: str) -> None:
        """The server has another chain under this epoch (a folder restored from a backup).

        What is not acknowledged in it is set aside: never sent, named as a gap in `gaps`, kept
        on the disk as history is. Commits go on in a new epoch. Raises LedgerBlocked.
        """
        with self._lock:
            chain = self._chains.get(epoch)
            if chain is None:
                return
            if chain is self._current:
                self.begin_epoch(reason)
            self._close_chain(chain, reason)

    # ---- reading

    def records(self, since_unix_ms: int = 0) -> Iterator[tuple[int, bytes]]:
        """(sequence, payload) of all that was committed since then and is still held, in order.

        By the clock at the commit. Damaged batches are passed over; they stand in `gaps`.
        """
        with self._lock:
            segments = list(self._segments)
            chains = dict(self._chains)
        for number, (segment, end) in enumerate(ends(segments, chains)):
            following = segments[number + 1] if number + 1 < len(segments) else None
            if following is not None and (
                # A day's allowance for a clock that was set back in between.
                following.name.begun_unix_ms + _DAY_MS < since_unix_ms
            ):
                continue
            try:
                for _, content, frame in frames_of([segment], self._reader, expected=1, end=end):
                    if frame.head.at_unix_ms < since_unix_ms:
                        continue
                    sequence = frame.head.first
                    for index, block in enumerate(frame.head.blocks):
                        found = frame.records(content.data, index) or ()
                        yield from enumerate(found, sequence)
                        sequence += block.count
            except Dropped:
                continue
        self._reader.forget()

    def verify(self) -> VerifyReport:
        """Check every frame: checksums, chain, signatures, continuity. Reads all segments."""
        return verify_folder(self._folder, self._files)

    def close(self) -> None:
        """Let go of the folder. May be called twice."""
        with self._lock:
            self._writer.close()
            handle, self._lock_handle = self._lock_handle, -1
            if handle >= 0:
                self._files.close(handle)

    # ---- inside

    def _take_folder(self) -> int:
        try:
            self._files.make_folder(self._folder)
            return self._files.lock(self._folder)
        except BlockingIOError as error:
            raise LedgerBusy(
                f"the ledger in {self._folder} is in use by another process: stop it "
                "(`systemctl stop licagent`)"
            ) from error
        except OSError as error:
            raise StateWriteFailed(
                f"cannot open the ledger's folder {self._folder}: {error.strerror}"
            ) from error

    def _choose_epoch(self) -> None:
        newest = next(reversed(self._chains.values()), None)
        key = self._keys.get(newest.epoch) if newest is not None else None
        if newest is not None and key is not None and key.public_key == newest.public_key:
            self._current = newest
            return
        if newest is not None:
            self._notes.append("the key of the ledger's epoch is lost: a new epoch is begun")
        self._add_epoch()

    def _add_epoch(self) -> None:
        taken = [*self._chains, *self._keys, *(each.name.epoch for each in self._segments)]
        epoch = new_epoch(self._now(), max(taken, default=0))
        key = EpochKey.make()
        self._keys[epoch] = key
        self._keys_saved = False
        self._current = self._chains[epoch] = Chain(epoch, key.public_key)

    def _save_keys(self) -> None:
        if self._keys_saved:
            return
        needed = {
            epoch: key
            for epoch, key in self._keys.items()
            if (chain := self._chains.get(epoch)) and (chain is self._current or not chain.is_done)
        }
        try:
            self._keys_file.save(needed)
        except OSError as error:
            raise self._blocked(error) from error
        self._keys = needed
        self._keys_saved = True

    def _follow_host(self, host_id: str) -> None:
        """An epoch belongs to one host: after its first signature with a name, to that one."""
        if self._current.host_id in ("", host_id):
            return
        reason = "the host has become another one"
        self.begin_epoch(reason)
        if not host_id:
            return  # it may come back as what it was
        for chain in list(self._chains.values()):
            if chain.host_id not in ("", host_id):
                self._close_chain(chain, reason)

    def _close_chain(self, chain: Chain, reason: str) -> None:
        if not chain.is_done:
            gap = Gap(
                chain.epoch, chain.acked + 1, chain.next_sequence - 1, reason, chain.last_hash
            )
            self._gaps[gap.epoch, gap.first] = gap
            which = f"records {gap.first} to {gap.last} of epoch {gap.epoch}"
            self._notes.append(f"{which} are not delivered: {reason}")
        chain.is_closed = True
        self._sent.pop(chain.epoch, None)

    def _compose(
        self, host_id: str, payloads: Sequence[bytes], marks: Mapping[str, bytes]
    ) -> tuple[Head, list[bytes]]:
        chain = self._current
        key = self._keys[chain.epoch]
        blocks: list[Block] = []
        body: list[bytes] = []
        first, running = chain.next_sequence, chain.last_hash
        for records in split(payloads):
            running = chain_hash(running, first, records)
            stored, raw_bytes = pack(records)
            last = first + len(records) - 1
            message = batch_message(
                host_id=host_id,
                boot_id=self._boot_id,
                epoch=chain.epoch,
                first=first,
                last=last,
                chain=running,
            )
            blocks.append(
                Block(
                    len(records),
                    len(stored),
                    raw_bytes,
                    zlib.crc32(stored),
                    running,
                    key.sign(message),
                )
            )
            body.append(stored)
            first = last + 1
        small, large = pack_marks(marks)
        if large:
            body.append(large)
        held = {segment.name.epoch for segment in self._segments}
        for epoch in [e for e, c in self._chains.items() if c.is_done and e not in held]:
            if epoch != chain.epoch:
                del self._chains[epoch]
        head = Head(
            chain.epoch,
            chain.public_key,
            self._boot_id,
            host_id,
            self._now(),
            chain.next_sequence,
            chain.last_hash,
            tuple(blocks),
            self._entries(),
            small,
            (len(large), zlib.crc32(large)) if large else None,
        )
        return head, body

    def _entries(self) -> tuple[ChainEntry, ...]:
        return tuple(each.entry() for each in self._chains.values())

    def _write(self, head: Head, body: Sequence[bytes]) -> Segment:
        segment_bytes = min(
            self._limits.segment_bytes, self._limits.spool_max_bytes // _SEGMENTS_AT_LEAST
        )
        while True:
            marker = self._writer.prepare(head.epoch, head.first, head.at_unix_ms, segment_bytes)
            frame = encode(marker, head, body)
            if self._make_room(len(frame)):
                head = replace(head, chains=self._entries())  # it says what was dropped
                frame = encode(marker, head, body)
            try:
                return self._writer.append(frame, head.first)
            except OSError as error:
                waste = self._retention.acknowledged(self._segments, self._chains, durable=False)
                if error.errno in _NO_SPACE and self._remove(waste):
                    continue  # history yields to new usage
                raise self._blocked(error) from error

    def _make_room(self, frame_bytes: int) -> bool:
        """Whether something was dropped for it that nobody had acknowledged."""
        for durable in (True, False):
            # What was acknowledged since the newest frame goes last: after a crash only the
            # server knows of it.
            for segment in self._retention.acknowledged(
                self._segments, self._chains, durable=durable
            ):
                if self.size_bytes + frame_bytes <= self._limits.spool_max_bytes:
                    return False
                self._remove([segment])
        has_dropped = False
        while self.size_bytes + frame_bytes > self._limits.spool_max_bytes:
            if self._limits.when_full == "hold" or not self._drop_oldest():
                self._trouble = (
                    f"the ledger is full ({self.size_bytes} of {self._limits.spool_max_bytes} "
                    "bytes, nothing acknowledged): usage is kept in the kernel"
                )
                raise LedgerFull(self._trouble)
            has_dropped = True
        return has_dropped

    def _drop_oldest(self) -> bool:
        if len(self._segments) < 2:
            return False
        segment, end = next(ends(self._segments, self._chains))
        if not self._remove([segment]):
            return False
        chain = self._chains.get(segment.name.epoch)
        if chain is not None and chain.dropped < end - 1:
            first = max(chain.dropped, chain.acked) + 1
            chain.dropped = end - 1
            if first < end:
                gap = Gap(chain.epoch, first, end - 1, DROPPED, chain.last_hash)
                self._gaps[gap.epoch, gap.first] = gap
        return True

    def _remove(self, segments: Sequence[Segment]) -> bool:
        gone = {segment.name.serial for segment in self._retention.remove(segments)}
        self._segments = [each for each in self._segments if each.name.serial not in gone]
        return bool(gone)

    def _taken(self, head: Head, segment: Segment, marks: Mapping[str, bytes]) -> None:
        if segment not in self._segments[-1:]:
            self._segments.append(segment)
        chain = self._current
        chain.next_sequence, chain.last_hash = head.next_sequence, head.last_hash
        chain.boot_id = head.boot_id
        chain.host_id = head.host_id or chain.host_id
        for entry in head.chains:
            self._chains[entry.epoch].durable_acked = entry.acked
        self._marks = dict(marks)
        self._trouble = ""
        self._remove(self._retention.expired(self._segments, self._chains, head.at_unix_ms))

    def _blocked(self, error: OSError) -> LedgerBlocked:
        self._trouble = (
            f"cannot write the ledger in {self._folder}: {error.strerror or error}. Usage is kept "
            "in the kernel meanwhile; free space or make the disk writable"
        )
        return LedgerBlocked(self._trouble)

    def _delivering(self) -> Chain:
        with self._lock:
            waiting = (chain for chain in self._chains.values() if not chain.is_done)
            return next(waiting, self._current)

    def _first_held(self, chain: Chain) -> int:
        its = (each.name.first for each in self._segments if each.name.epoch == chain.epoch)
        return min(its, default=chain.next_sequence)

    def _is_held(self, segment: Segment) -> bool:
        with self._lock:
            return any(each is segment for each in self._segments)

    def _items(self, epoch: int, after: int, *, to_send: bool = True) -> Iterator[Batch | Gap]:
        with self._lock:
            chain = self._chains.get(epoch)
            if chain is None or chain.is_closed:
                return
            segments = [each for each in self._segments if each.name.epoch == epoch]
            span = chain.span(max(after, 0))
            if to_send and self._unsettled is not None:
                # A frame that a power cut may still take must not be told of: its sequences
                # would be given again.
                span = self._unsettled.before(span)
        try:
            yield from walk(segments, self._reader, span)
        except Dropped:
            return  # acknowledged meanwhile: whoever asks again gets what follows
        self._reader.forget()

    def _signed(self, gap: Gap) -> Gap:
        with self._lock:
            key = self._keys.get(gap.epoch)
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
            if (gap.epoch, gap.first) not in self._gaps:
                self._notes.append(
                    f"records {gap.first} to {gap.last} of epoch {gap.epoch} are lost: {gap.reason}"
                )
            self._gaps[gap.epoch, gap.first] = gap
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
