# SPDX-License-Identifier: Apache-2.0
"""Verdicts, reasons and the errno a refused program sees.

One enumeration shared with the kernel: bpf/layout/numbers.h carries the same numbers, and
tests/unit/kernel/test_layout.py compares the two. Numbers are never reused.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Final


class Verdict(IntEnum):
    """What was done with a use of a resource."""

    NONE = 0
    ALLOW = 1
    DENY = 2
    SHADOW = 3  # observe mode: let through, would have been denied
    CUT = 4  # packet of an open socket dropped: its license ended meanwhile


class Reason(IntEnum):
    """Why a verdict came about."""

    NONE = 0
    LICENSED = 1
    NO_RESOURCE = 2
    FAILSAFE = 3
    BREAK_GLASS = 4
    NO_BINDING = 5
    EXPIRED = 6
    NOT_YET_VALID = 7
    LEASE_LOST = 8
    REVOKED = 9
    CONDITION = 10
    NO_SEAT = 11
    QUOTA = 12
    MALFORMED = 13  # a packet to a licensed network whose headers cannot be read


REASON_ERRNO: Final[dict[Reason, int]] = {
    Reason.NO_BINDING: errno.ENOKEY,
    Reason.EXPIRED: errno.EKEYEXPIRED,
    Reason.NOT_YET_VALID: errno.EKEYEXPIRED,
    Reason.LEASE_LOST: errno.EKEYEXPIRED,
    Reason.REVOKED: errno.EKEYREVOKED,
    Reason.CONDITION: errno.EKEYREJECTED,
    Reason.NO_SEAT: errno.EUSERS,
    Reason.QUOTA: errno.EDQUOT,
    Reason.MALFORMED: errno.EPERM,
}
"""errno of a denied call on kernels with bpf_set_retval (5.18, commit b44123b4a3dc); else EPERM."""
