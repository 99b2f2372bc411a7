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

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from licagent.store.filelayer import FileLayer, OsFiles
from licagent.store.ledger_types import (
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
    ) -> None:
        """Open what is there. Raises LedgerBusy, StoreError where the folder cannot be read.

        A disk that cannot be written does not raise here: `settled` is False then.
        """
        self._folder = folder
        self._boot_id = boot_id
        self._host_id = host_id
        self._limits = limits or LedgerLimits()
        self._files = files or OsFiles()

    # ---- what there is

    @property
    def settled(self) -> bool:
        """Whether the newest frame is known to be on the disk, so that `marks` may be acted on.

        False after an open on a disk that refuses: discard nothing on the strength of `marks`
        until `settle` or `commit` returned.
        """
        raise NotImplementedError

    def settle(self) -> None:
        """Make sure of the newest frame. Raises LedgerBlocked."""
        raise NotImplementedError

    @property
    def marks(self) -> Mapping[str, bytes]:
        """The marks of the newest commit; empty on a new ledger."""
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The oldest epoch that has something to deliver, else the current one.

        When it changes (the old one is wholly acknowledged), begin a new stream with a new hello.
        """
        raise NotImplementedError

    @property
    def public_key(self) -> bytes:
        """Of `epoch`; Ed25519, 32 bytes."""
        raise NotImplementedError

    @property
    def boot_id(self) -> str:
        """Of this boot; batches carry that of theirs."""
        return self._boot_id

    @property
    def next_sequence(self) -> int:
        """The sequence after the last one of `epoch`."""
        raise NotImplementedError

    @property
    def first_unacknowledged(self) -> int:
        """In `epoch`; equals `next_sequence` when all is delivered."""
        raise NotImplementedError

    @property
    def acknowledged(self) -> tuple[int, bytes]:
        """The last acknowledged sequence of `epoch` and the chain's hash there; (0, zeros)."""
        raise NotImplementedError

    def epochs(self) -> tuple[EpochState, ...]:
        """Those with something to deliver, oldest first, and the current one as the last.

        Each is a stream of its own for the control plane: a client that delivers them side by
        side keeps the newest from waiting behind a backlog (see `begin_epoch`).
        """
        raise NotImplementedError

    @property
    def backlog_records(self) -> int:
        """Records that are not acknowledged, in all epochs."""
        raise NotImplementedError

    @property
    def size_bytes(self) -> int:
        """Of all segment files."""
        raise NotImplementedError

    @property
    def gaps(self) -> Sequence[Gap]:
        """What is known to be lost so far; damage in the middle is found when it is read."""
        raise NotImplementedError

    @property
    def problems(self) -> Sequence[str]:
        """For `status`: what is wrong now, and what was found since the open; for people."""
        raise NotImplementedError

    @property
    def interval_factor(self) -> int:
        """How many intervals the caller should commit as one: 1, 2, 4 ... 1024.

        It doubles each time that half of what was left of the bound is gone, so that a spool
        that nobody empties becomes coarser instead of full.
        """
        raise NotImplementedError

    # ---- writing

    def commit(self, payloads: Sequence[bytes], marks: Mapping[str, bytes]) -> Committed:
        """Take records and marks, durably and together, or nothing at all.

        `marks` replaces all earlier marks. Values of at most 64 bytes survive damage to the
        frame; at most 16 MiB in all. Raises LedgerFull (the bound is reached) and LedgerBlocked
        (the disk refuses): nothing is taken, and the same call may be made again. ValueError for
        a record beyond PAYLOAD_MAX_BYTES or more than FRAME_RECORDS of them.
        """
        raise NotImplementedError

    def begin_epoch(self, reason: str) -> int:
        """Let further commits go to a new epoch; its number. Raises LedgerBlocked."""
        raise NotImplementedError

    # ---- delivering

    def batches(
        self, after: int, *, limit_bytes: int, epoch: int | None = None
    ) -> Iterator[Batch | Gap]:
        """What follows sequence `after` in an epoch (None: `epoch`), in order, from the disk.

        Ends after about `limit_bytes` of records (at least one item is given, if there is one).
        A batch that holds `after` in its middle is given whole. Raises LedgerBlocked where the
        disk cannot be read.
        """
        raise NotImplementedError

    def acknowledge(self, sequence: int, hash: bytes, *, epoch: int | None = None) -> bool:  # noqa: A002
        """Believe that the server has everything up to `sequence` (None: of `epoch`).

        False, and nothing changes, for one beyond what is held or with another hash than ours:
        an alarm for the caller to raise. True, also when it was known already. It becomes
        durable with the next commit; lost in a crash, the server says it again.
        """
        raise NotImplementedError

    def diverged(self, epoch: int, reason: str) -> None:
        """The server has another chain under this epoch (a folder restored from a backup).

        What is not acknowledged in it is set aside: never sent, named as a gap in `gaps`, kept
        on the disk. Commits go on in a new epoch. Raises LedgerBlocked.
        """
        raise NotImplementedError

    # ---- reading

    def records(self, since_unix_ms: int = 0) -> Iterator[tuple[int, bytes]]:
        """(sequence, payload) of all that was committed since then and is still held, in order.

        Damaged batches are passed over; they stand in `gaps`.
        """
        raise NotImplementedError

    def verify(self) -> VerifyReport:
        """Check every frame: checksums, chain, signatures, continuity. Reads all segments."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the folder. May be called twice."""
        raise NotImplementedError
