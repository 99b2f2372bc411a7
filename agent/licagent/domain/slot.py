# SPDX-License-Identifier: Apache-2.0
"""What the kernel is told of a license: may it, since when, until when, and why it ends then.

The kernel ends a license by itself, with the daemon dead. So whatever may take it away later is
an end there: the license's own, that of its lease, and for one with conditions the moment up to
which they were seen to hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from licagent.domain.license import LicenseState
from licagent.domain.reason import Reason

ATTESTED_NS: Final = 60 * 1_000_000_000
"""How long conditions that were seen to hold are believed; then a license with any is over."""

OTHERS_SLACK_NS: Final = 5 * 1_000_000_000
"""How long a license outlives the hours of one of its entitlements, for the sake of the others,
when no daemon is there to take away only that one."""

_BY_TIME: Final = frozenset((LicenseState.NOT_YET_VALID, LicenseState.EXPIRED))


@dataclass(frozen=True, slots=True)
class SlotValues:
    """One license slot of the kernel. Times are CLOCK_BOOTTIME in ns."""

    state: Reason
    not_before_ns: int
    not_after_ns: int
    end_reason: Reason  # what uses are refused with from not_after_ns on

    def grants(self, now_ns: int) -> bool:
        """Whether the kernel lets through by it at that moment."""
        return self.state is Reason.LICENSED and self.not_before_ns <= now_ns < self.not_after_ns


def slot_values(
    state: LicenseState,
    not_before_ns: int,
    expires_ns: int,
    *,
    lease_end_ns: int | None = None,
    condition_end_ns: int | None = None,
) -> SlotValues:
    """The slot of a license in `state`.

    `lease_end_ns` has the license's grace in it and is None for one that needs no lease;
    `condition_end_ns` is None for one without conditions. The first end counts; of ends at the
    same moment the license's own, then the lease's, gives the reason.
    """
    ends = [(expires_ns, Reason.EXPIRED)]
    if lease_end_ns is not None:
        ends.append((lease_end_ns, Reason.LEASE_LOST))
    if condition_end_ns is not None:
        ends.append((condition_end_ns, Reason.CONDITION))
    not_after_ns, end_reason = min(ends, key=lambda end: end[0])
    # Time is the kernel's own business: it ends, and begins, with the daemon dead.
    reason = LicenseState.VALID.reason if state in _BY_TIME else state.reason
    return SlotValues(reason, not_before_ns, not_after_ns, end_reason)
