# SPDX-License-Identifier: Apache-2.0
"""Between the ledger and its delivery: what delivery asks for, and how it tells of itself.

The shapes are those of licagent.store.ledger_types; control does not import store. Loads no gRPC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class BatchShape(Protocol):
    """Consecutive records, as they were committed and signed (`Batch`)."""

    @property
    def epoch(self) -> int:
        """Of the chain."""

    @property
    def boot_id(self) -> str:
        """The boot in which they were committed."""

    @property
    def first(self) -> int:
        """Sequence of records[0]; 1 is the first of an epoch."""

    @property
    def last(self) -> int:
        """Sequence of the last record."""

    @property
    def records(self) -> Sequence[bytes]:
        """At least one."""

    @property
    def previous_hash(self) -> bytes:
        """The chain before records[0]."""

    @property
    def hash(self) -> bytes:
        """The chain after the last one."""

    @property
    def signature(self) -> bytes:
        """See UsageBatch in the protocol."""


class GapShape(Protocol):
    """Sequences that are lost (`Gap`); it has no `records`."""

    @property
    def epoch(self) -> int:
        """Of the chain."""

    @property
    def first(self) -> int:
        """The first lost sequence."""

    @property
    def last(self) -> int:
        """The last lost sequence."""

    @property
    def reason(self) -> str:
        """For people."""

    @property
    def next_previous_hash(self) -> bytes:
        """The chain after `last`, as the next intact frame has it."""

    @property
    def signature(self) -> bytes:
        """Empty where the epoch's key is lost too."""


class EpochShape(Protocol):
    """A chain with something to deliver, or the current one (`EpochState`)."""

    @property
    def epoch(self) -> int:
        """Its number."""

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes."""

    @property
    def boot_id(self) -> str:
        """Of its newest frame."""

    @property
    def first_sequence(self) -> int:
        """The oldest that is still held."""

    @property
    def next_sequence(self) -> int:
        """After the last one."""

    @property
    def acked_sequence(self) -> int:
        """0: none yet."""

    @property
    def acked_hash(self) -> bytes:
        """The chain there."""

    @property
    def is_current(self) -> bool:
        """Commits go here."""


class UsageSource(Protocol):
    """The ledger. Its methods block and may raise OSError and StoreError; called on threads."""

    def epochs(self) -> Sequence[EpochShape]:
        """Those with something to deliver, oldest first, and the current one as the last."""

    def past_epochs(self) -> Sequence[EpochShape]:
        """Earlier ones that are wholly acknowledged and still held."""

    def batches(
        self, after: int, *, limit_bytes: int, epoch: int | None = None
    ) -> Iterator[BatchShape | GapShape]:
        """What follows sequence `after` in an epoch, in order and without holes.

        `after` may be below what was acknowledged: a control plane that was put back from an
        older copy asks again.
        """

    def acknowledge(
        self,
        sequence: int,
        hash: bytes,  # noqa: A002
        *,
        epoch: int | None = None,
    ) -> bool:
        """Everything up to there is stored. False for one that is not in our chain."""

    def diverged(self, epoch: int, reason: str) -> None:
        """The control plane has another chain under this epoch: go on in a new one."""

    def begin_epoch(self, reason: str) -> int:
        """Let further commits go to a new epoch."""


@dataclass(frozen=True, slots=True)
class UsageProgress:
    """How delivery stands, for `licagent status`. Times are unix milliseconds; 0: never."""

    is_connected: bool = False
    """A stream is open and was welcomed."""
    epochs: int = 0
    """Chains being delivered side by side."""
    acknowledged_records: int = 0
    """Since the daemon started."""
    acknowledged_at_unix_ms: int = 0
    in_flight_records: int = 0
    """Sent and not acknowledged yet."""
    paused_until_unix_ms: int = 0
    """The control plane asked to wait until then."""
    refused_records: int = 0
    """Set aside by the control plane since the daemon started: stored, not billed."""
    last_refusal: str = ""
    last_error: str = ""
    """Why nothing is delivered now; empty while it is well."""
    alarm: str = ""
    """What somebody must look at: an acknowledgement that cannot be true, a chain that the
    control plane has otherwise, records that it set aside. The last one."""
