# SPDX-License-Identifier: Apache-2.0
"""The ledger's frames as they are written: the newest one made sure of, and further ones."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from licagent.store.epochkeys import write_all
from licagent.store.filelayer import FileLayer
from licagent.store.frame_heads import Head
from licagent.store.frames import encode
from licagent.store.ledger_compose import compose
from licagent.store.ledger_epochs import Epochs
from licagent.store.ledger_recovery import Newest, Recovered
from licagent.store.ledger_retention import Shelf
from licagent.store.ledger_types import (
    FRAME_RECORDS,
    PAYLOAD_MAX_BYTES,
    Committed,
    LedgerBlocked,
    LedgerFull,
)
from licagent.store.segments import Segment
from licagent.store.spool import SpoolWriter

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_MARKS_MAX_BYTES: Final = 16 * 1024 * 1024


class Commits:
    """Takes the lock for each call. What it tells of itself is read without."""

    def __init__(
        self,
        lock: threading.RLock,
        folder: Path,
        files: FileLayer,
        writer: SpoolWriter,
        *,
        epochs: Epochs,
        shelf: Shelf,
        found: Recovered,
        boot_id: str,
        host_id: Callable[[], str],
        now_unix_ms: Callable[[], int],
    ) -> None:
        """Go on after what was found; `settle` comes first."""
        self._lock = lock
        self._folder = folder
        self._files = files
        self._writer = writer
        self._epochs = epochs
        self._shelf = shelf
        self._boot_id = boot_id
        self._host_id = host_id
        self._now = now_unix_ms
        self._torn = found.torn
        self.marks: Mapping[str, bytes] = found.marks
        """See `Ledger.marks`."""
        self.unsettled: Newest | None = found.newest
        """The newest frame while it is not known to be on the disk."""
        self.settled = False
        """See `Ledger.settled`."""
        self.trouble = ""
        """See `Ledger.trouble`."""

    def settle(self) -> None:
        """See `Ledger.settle`."""
        with self._lock:
            if self.settled:
                return
            try:
                for segment in self._torn:
                    with contextlib.suppress(FileNotFoundError):
                        self._files.unlink(self._folder / str(segment.name))
                if self.unsettled is not None:
                    newest = self.unsettled
                    handle = self._files.open(self._folder / str(newest.segment.name))
                    try:
                        write_all(self._files, handle, newest.data, newest.offset)
                        self._files.fsync(handle)
                    finally:
                        self._files.close(handle)
                self._files.fsync_folder(self._folder)
            except OSError as error:
                raise self._blocked(error) from error
            self.unsettled, self._torn = None, []
            self.settled = True
            self.trouble = ""

    def commit(self, payloads: Sequence[bytes], marks: Mapping[str, bytes]) -> Committed:
        """See `Ledger.commit`."""
        if len(payloads) > FRAME_RECORDS or sum(map(len, marks.values())) > _MARKS_MAX_BYTES:
            raise ValueError("too much for one commit")
        if max(map(len, payloads), default=0) > PAYLOAD_MAX_BYTES:
            raise ValueError(f"a record is longer than {PAYLOAD_MAX_BYTES} bytes")
        with self._lock:
            self.settle()
            host_id = self._host_id()
            try:
                if self._epochs.follow_host(host_id):
                    self._writer.close()
                self._epochs.save_keys()
            except OSError as error:
                raise self._blocked(error) from error
            head, body = self._compose(host_id, payloads, marks)
            segment = self._write(head, body)
            self._taken(head, segment, marks)
            return Committed(head.epoch, head.first, head.next_sequence - 1)

    def begin_epoch(self, reason: str) -> int:
        """See `Ledger.begin_epoch`."""
        with self._lock:
            try:
                if self._epochs.begin(reason):
                    self._writer.close()
            except OSError as error:
                raise self._blocked(error) from error
            return self._epochs.current.epoch

    def _compose(
        self, host_id: str, payloads: Sequence[bytes], marks: Mapping[str, bytes]
    ) -> tuple[Head, list[bytes]]:
        chain = self._epochs.current
        key = self._epochs.key_of(chain.epoch)
        if key is None:
            raise RuntimeError("the current epoch always has a key")
        self._epochs.prune({segment.name.epoch for segment in self._shelf.segments})
        return compose(
            chain,
            key,
            payloads,
            marks,
            boot_id=self._boot_id,
            host_id=host_id,
            now_unix_ms=self._now(),
            chains=self._epochs.entries(),
        )

    def _write(self, head: Head, body: Sequence[bytes]) -> Segment:
        while True:
            marker = self._writer.prepare(
                head.epoch, head.first, head.at_unix_ms, self._shelf.segment_bytes
            )
            frame = encode(marker, head, body)
            try:
                if self._shelf.make_room(len(frame)):
                    head = replace(head, chains=self._epochs.entries())  # what was dropped
                    frame = encode(marker, head, body)
                return self._writer.append(frame, head.first)
            except LedgerFull as error:
                self.trouble = str(error)
                raise
            except OSError as error:
                if error.errno in _NO_SPACE and self._shelf.drop_acknowledged():
                    continue  # history yields to new usage
                raise self._blocked(error) from error

    def _taken(self, head: Head, segment: Segment, marks: Mapping[str, bytes]) -> None:
        self._shelf.add(segment)
        chain = self._epochs.current
        chain.next_sequence, chain.last_hash = head.next_sequence, head.last_hash
        chain.boot_id = head.boot_id
        chain.host_id = head.host_id or chain.host_id
        for entry in head.chains:
            self._epochs.chains[entry.epoch].durable_acked = entry.acked
        self.marks = dict(marks)
        self.trouble = ""
        self._shelf.expire(head.at_unix_ms)

    def _blocked(self, error: OSError) -> LedgerBlocked:
        self.trouble = (
            f"cannot write the ledger in {self._folder}: {error.strerror or error}. Usage is kept "
            "in the kernel meanwhile; free space or make the disk writable"
        )
        return LedgerBlocked(self.trouble)
