# SPDX-License-Identifier: Apache-2.0
"""The numbers of bpf/licagent.h: its enumerations and its lengths.

tests/unit/kernel/test_layout.py compares them with the header.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

MAX_SHAPES: Final = 32
MAX_SCOPES: Final = 8
NAME_LEN: Final = 64
SCOPE_NAME_LEN: Final = 252
NANOSECONDS_MAX: Final = 2**64 - 1
METERS: Final = 16384
METER_BITS: Final = 14

METERS_SPILLED: Final = 5
"""LIC_METERS_SPILLED: meters 1..5 are those of all who got none, by protocol."""


class Hook(IntEnum):
    """enum lic_hook: where a decision was taken."""

    CONNECT = 1
    SENDMSG = 2
    BIND = 3
    POST_BIND = 4
    EGRESS = 5
    INGRESS = 6
    SOCKET = 7
    ADOPT = 8
    EXEC = 9
    INTERFACE = 10
    FAMILY = 11
    GUARD = 12


class TagKind(IntEnum):
    """enum lic_tag_kind: what one half of a socket's tag says."""

    NONE = 0
    FREE = 1
    LICENSED = 2
    SHADOW = 3
    GLASS = 4
    DENIED = 5
    PACKET = 6


class Fault(IntEnum):
    """enum lic_fault: index of the `faults` map."""

    EVENT_DROPPED = 0
    COUNTER_SPILLED = 1
    TAG_FAILED = 2
    PROCESS_FAILED = 3
    CGROUP_FAILED = 4
    EVENT_EMITTED = 5
    METER_SPILLED = 6
    WORK_SPILLED = 7


class Direction(IntEnum):
    """enum lic_direction."""

    TX = 0
    RX = 1


class PolicyFlag(IntEnum):
    """enum lic_policy_flag."""

    ENFORCE = 1
    HAS_NETWORKS = 2
    HAS_SERVICES = 4
    KEEP_EXISTING = 8
    HAS_SCOPES = 16
    ENFORCES_NETWORKS = 32


class EventKind(IntEnum):
    """enum lic_event_kind."""

    DECISION = 1
    EXEC = 2
    GUARD = 3


class Guarded(IntEnum):
    """enum lic_guarded: what the guard protects."""

    LINK = 1
    MAP = 2
    FOLDER = 3
    MOUNT = 4
    PROCESS = 5
    PROGRAM = 6


class SeenBy(IntEnum):
    """LIC_SEEN_...: which LSM object's programs have run."""

    FAMILIES = 1
    GUARD = 2
