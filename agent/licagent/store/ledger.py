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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from licagent.store.epochkeys import EpochKeys
from licagent.store.errors import StateWriteFailed
from licagent.store.filelayer import FileLayer, OsFiles
from licagent.store.ledger_commits import Commits
from licagent.store.ledger_delivery import Delivery
from licagent.store.ledger_epochs import Epochs, Findings
from licagent.store.ledger_reading import SegmentReader
from licagent.store.ledger_recovery import Chain, recover
from licagent.store.ledger_retention import Shelf
from licagent.store.ledger_types import (
    Batch,
    Committed,
    EpochState,
    Gap,
    LedgerBlocked,
    LedgerBusy,
    LedgerLimits,
    VerifyReport,
)
from licagent.store.ledger_verify import verify_folder
from licagent.store.spool import SpoolWriter


class Ledger:
    """One folder, one writer (a second one gets LedgerBusy). Any thread may call.

    Methods block, and wait for one another. Properties, `epochs` and `set_when_full` do neither:
    a status is told while a slow disk syncs.
    """

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
        self._files = files = files or OsFiles()
        self._lock = threading.RLock()
        self._lock_handle = self._take_folder()
        try:
            found = recover(files, folder)
            self._findings = Findings(found.problems)
            for gap in found.gaps:
                self._findings.add(gap)
            self._epochs = Epochs(
                EpochKeys(folder, files),
                found.chains,
                used=[segment.name.epoch for segment in found.segments],
                must_renew=found.is_end_damaged,
                now_unix_ms=now_unix_ms,
                findings=self._findings,
            )
        except OSError as error:
            files.close(self._lock_handle)
            raise StateWriteFailed(
                f"cannot read the ledger in {folder}: {error.strerror}. Nothing is billed "
                "until it can be read"
            ) from error
        self._writer = SpoolWriter(folder, files, found.next_serial)
        self._shelf = Shelf(
            folder,
            files,
            limits or LedgerLimits(),
            segments=found.segments,
            epochs=self._epochs,
            findings=self._findings,
        )
        self._commits = Commits(
            self._lock,
            folder,
            files,
            self._writer,
            epochs=self._epochs,
            shelf=self._shelf,
            found=found,
            boot_id=boot_id,
            host_id=host_id,
            now_unix_ms=now_unix_ms,
        )
        self._delivery = Delivery(
            self._lock,
            self._epochs,
            self._shelf,
            SegmentReader(
                folder, files, offset_of=self._writer.offset_of, is_held=self._shelf.holds
            ),
            self._findings,
            host_id=host_id,
            unsettled=lambda: self._commits.unsettled,
        )
        with contextlib.suppress(LedgerBlocked):
            self.settle()

    # ---- what there is

    @property
    def settled(self) -> bool:
        """Whether the newest frame is known to be on the disk, so that `marks` may be acted on.

        False after an open on a disk that refuses: discard nothing on the strength of `marks`
        until `settle` or `commit` returned.
        """
        return self._commits.settled

    def settle(self) -> None:
        """Make sure of the newest frame. Raises LedgerBlocked.

        The frame may be in the kernel's memory only: its writer was killed before the fsync
        returned, or the fsync failed, after which the kernel takes the pages for written. So it
        is written once more, the same bytes at the same place, and synced.
        """
        self._commits.settle()

    @property
    def marks(self) -> Mapping[str, bytes]:
        """The marks of the newest commit; empty on a new ledger.

        Without the ones beyond 64 bytes if that frame is damaged: take a new baseline then, what
        was used since the old one is lost (and stands in `problems`).
        """
        return self._commits.marks

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
        return self._delivery.epochs()

    def past_epochs(self) -> tuple[EpochState, ...]:
        """Earlier epochs that are wholly acknowledged and of which records are still held.

        A control plane that lost what it acknowledged (put back from an older copy, failed over
        to a standby that lacked it) gets them again only if it is asked.
        """
        return self._delivery.past_epochs()

    @property
    def backlog_records(self) -> int:
        """Records that are not acknowledged, in all epochs."""
        return sum(chain.next_sequence - 1 - chain.acked for chain in self._epochs.waiting())

    @property
    def size_bytes(self) -> int:
        """Of all segment files."""
        return self._shelf.size_bytes

    @property
    def gaps(self) -> Sequence[Gap]:
        """What is known to be lost so far; damage in the middle is found when it is read."""
        return self._findings.gaps

    @property
    def problems(self) -> Sequence[str]:
        """For `status`: what is wrong now, and what was found since the open; for people."""
        return tuple(each for each in (self._commits.trouble, *self._findings.notes) if each)

    @property
    def trouble(self) -> str:
        """Why the last commit was refused; "" once one was taken."""
        return self._commits.trouble

    @property
    def interval_factor(self) -> int:
        """How many intervals the caller should commit as one: 1, 2, 4 ... 1024.

        It doubles each time that half of what was left of the bound is gone, so that a spool
        that nobody empties becomes coarser instead of full. Always 1 with "drop_oldest".
        """
        return self._shelf.interval_factor

    def set_when_full(self, what: Literal["hold", "drop_oldest"]) -> None:
        """Follow a host that joined a control plane, or left it; see `LedgerLimits`."""
        self._shelf.limits = replace(self._shelf.limits, when_full=what)

    # ---- writing

    def commit(self, payloads: Sequence[bytes], marks: Mapping[str, bytes]) -> Committed:
        """Take records and marks, durably and together, or nothing at all.

        `marks` replaces all earlier marks. Values of at most 64 bytes survive damage to the
        frame; at most 16 MiB in all. Raises LedgerFull (the bound is reached) and LedgerBlocked
        (the disk refuses): nothing is taken, and the same call may be made again. ValueError for
        a record beyond PAYLOAD_MAX_BYTES or more than FRAME_RECORDS of them.
        """
        return self._commits.commit(payloads, marks)

    def begin_epoch(self, reason: str) -> int:
        """Let further commits go to a new epoch; its number. Raises LedgerBlocked.

        The one before stays to be delivered. An epoch that has no records yet is kept.
        """
        return self._commits.begin_epoch(reason)

    # ---- delivering

    def batches(
        self, after: int, *, limit_bytes: int, epoch: int | None = None
    ) -> Iterator[Batch | Gap]:
        """What follows sequence `after` in an epoch (None: `epoch`), in order, from the disk.

        Ends after about `limit_bytes` of records (at least one item is given, if there is one).
        A batch that holds `after` in its middle is given whole. Raises LedgerBlocked where the
        disk cannot be read.
        """
        return self._delivery.batches(self.epoch if epoch is None else epoch, after, limit_bytes)

    def acknowledge(self, sequence: int, hash: bytes, *, epoch: int | None = None) -> bool:  # noqa: A002
        """Believe that the server has everything up to `sequence` (None: of `epoch`).

        False, and nothing changes, for one beyond what is held or with another hash than ours:
        an alarm for the caller to raise. True, also when it was known already. It becomes
        durable with the next commit; lost in a crash, the server says it again. Raises
        LedgerBlocked where the disk cannot be read.
        """
        return self._delivery.acknowledge(self.epoch if epoch is None else epoch, sequence, hash)

    def diverged(self, epoch: int, reason: str) -> None:
        """The server has another chain under this epoch (a folder restored from a backup).

        What is not acknowledged in it is set aside: never sent, named as a gap in `gaps`, kept
        on the disk as history is. Commits go on in a new epoch. Raises LedgerBlocked.
        """
        with self._lock:
            chain = self._epochs.chains.get(epoch)
            if chain is None:
                return
            if chain is self._epochs.current:
                self.begin_epoch(reason)
            self._epochs.close(chain, reason)
            self._delivery.forget(epoch)

    # ---- reading

    def records(self, since_unix_ms: int = 0) -> Iterator[tuple[int, bytes]]:
        """(sequence, payload) of all that was committed since then and is still held, in order.

        By the clock at the commit. Damaged batches are passed over; they stand in `gaps`.
        Raises LedgerBlocked where the disk cannot be read.
        """
        return self._delivery.records(since_unix_ms)

    def newest_first(self, since_unix_ms: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The payloads of `records` by segment, the newest segment first.

        With the time (Unix ms) at which the segment was begun, so that whoever cannot wait for
        all of it knows from when on he has everything. Within a segment they are in order.
        Raises LedgerBlocked where the disk cannot be read.
        """
        return self._delivery.newest_first(since_unix_ms)

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

    def _delivering(self) -> Chain:
        return self._epochs.delivering
