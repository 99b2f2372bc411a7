# SPDX-License-Identifier: Apache-2.0
"""Delivery of usage records, on a connection of their own, in order, until each is acknowledged.

The ledger keeps what was not acknowledged; this sends it and tells the ledger what was. Sending
twice is harmless: the control plane knows a record by host, boot, epoch and sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from licagent.control.interface import ControlSettings
from licagent.domain.hostidentity import Identity
from licagent.domain.usage_chain import UsageBatch, UsageGap


class UsageSource(Protocol):
    """The ledger (licagent.store.ledger). Methods block; they are called on threads, one at a
    time, beside the thread that commits."""

    @property
    def epoch(self) -> int:
        """Of the spool: a new one when it was made anew."""

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes: verifies the batches of this epoch."""

    @property
    def boot_id(self) -> str:
        """The boot that is running."""

    @property
    def first_kept(self) -> int:
        """The oldest sequence that is still on disk; next_sequence where there is none."""

    @property
    def next_sequence(self) -> int:
        """The sequence that the next record will get."""

    @property
    def acknowledged(self) -> int:
        """Everything up to here was acknowledged; 0: nothing."""

    def batches(self, after: int, *, limit_bytes: int) -> Iterator[UsageBatch | UsageGap]:
        """What follows sequence `after`, in order and without holes: what is lost is a gap.

        At most about `limit_bytes` of records, but one item if there is any. `after` may be below
        `acknowledged` (a control plane that was put back from an older copy).
        """

    def acknowledge(self, sequence: int, chain_hash: bytes) -> None:
        """Everything up to `sequence` is stored. Raises ValueError where the chain there has
        another hash or there is no such sequence: nothing is dropped then."""


@dataclass(frozen=True, slots=True)
class UsageProgress:
    """How delivery stands, for `licagent status`. Times are unix milliseconds; 0: never."""

    is_connected: bool = False
    acknowledged: int = 0
    acknowledged_at_unix_ms: int = 0
    sent: int = 0
    """The last sequence that was sent on this stream."""
    paused_until_unix_ms: int = 0
    """The control plane asked to wait until then."""
    refused: int = 0
    """Records that the control plane set aside, since the daemon started."""
    last_refusal: str = ""
    last_error: str = ""
    """Why nothing is delivered now; empty while it is well."""
    alarm: str = ""
    """What somebody must look at: an acknowledgement that cannot be true, a refused record."""


async def deliver_for_ever(
    identity: Identity,
    address: str,
    settings: ControlSettings,
    source: UsageSource,
    *,
    told: Callable[[UsageProgress], None],
) -> None:
    """Deliver until cancelled. A failure costs a pause; what was not acknowledged is sent again.

    `told` is called on the loop whenever the progress changed.
    """
    raise NotImplementedError
