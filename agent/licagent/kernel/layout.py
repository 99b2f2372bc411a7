# SPDX-License-Identifier: Apache-2.0
"""The structs of bpf/licagent.h, field by field.

tests/unit/kernel/test_layout.py compares sizes, offsets and enumerations with the BTF of the
built objects, and `licagent.kernel.maps.check_layout` with the kernel's maps when the daemon opens
them.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_char, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum
from typing import Final

SCHEMA: Final = 3
"""LIC_SCHEMA: version of all pinned maps."""

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


class Control(Structure):
    """struct lic_control."""

    _fields_ = [
        ("generation", c_uint64),
        ("break_glass_until_ns", c_uint64),
        ("root_cgroup", c_uint64),
        ("measure", c_uint32),
        ("zero", c_uint32),
        ("sheet", c_uint32),
        ("discarded", c_uint32),
        ("page_bytes", c_uint32),
        ("era", c_uint32),
        ("metered_since_ns", c_uint64),
        ("wall_offset_ns", c_uint64),
        ("wall_lowest_ns", c_uint64),
        ("wall_since_ns", c_uint64),
    ]


class Policy(Structure):
    """struct lic_policy."""

    _fields_ = [
        ("generation", c_uint32),
        ("flags", c_uint32),
        ("shape_count", c_uint32),
        ("reserved", c_uint32),
        ("shapes", c_uint8 * MAX_SHAPES),
    ]


class License(Structure):
    """struct lic_license."""

    _fields_ = [
        ("number", c_uint32),
        ("epoch", c_uint32),
        ("state", c_uint32),
        ("end_reason", c_uint32),
        ("not_before_ns", c_uint64),
        ("not_after_ns", c_uint64),
    ]


class PathKey(Structure):
    """struct lic_path_key."""

    _fields_ = [
        ("device", c_uint32),
        ("reserved", c_uint32),
        ("inode", c_uint64),
        ("name", c_char * NAME_LEN),
    ]


class ContentKey(Structure):
    """struct lic_content_key."""

    _fields_ = [
        ("device", c_uint32),
        ("reserved", c_uint32),
        ("inode", c_uint64),
        ("ctime_ns", c_uint64),
    ]


class Content(Structure):
    """struct lic_content."""

    _fields_ = [("number", c_uint32), ("reserved", c_uint32), ("from_ns", c_uint64)]


class Known(Structure):
    """struct lic_known."""

    _fields_ = [("exec_id", c_uint32), ("number", c_uint32)]


class Process(Structure):
    """struct lic_process."""

    _fields_ = [
        ("inode", c_uint64),
        ("ctime_ns", c_uint64),
        ("device", c_uint32),
        ("measured", c_uint32),
        ("exec_ns", c_uint64),
        ("path", Known),
        ("digest", Known),
        ("allowed_ns", c_uint64),
        ("allowed_license", c_uint32),
        ("allowed_resource", c_uint32),
        ("allowed_pending", c_uint64),
        ("start_ns", c_uint64),
    ]

    def holds(self, known: Known) -> int:
        """The number in `known`, if it is of this exec; else 0: known_path() in bpf/core.h."""
        return int(known.number) if known.exec_id == self.exec_ns & 0xFFFFFFFF else 0


class Cgroup(Structure):
    """struct lic_cgroup."""

    _fields_ = [("count", c_uint32), ("scopes", c_uint32 * MAX_SCOPES)]


class ScopeKey(Structure):
    """struct lic_scope_key."""

    _fields_ = [("kind", c_uint32), ("name", c_char * SCOPE_NAME_LEN)]


class Half(Structure):
    """struct lic_half."""

    _fields_ = [
        ("generation", c_uint32),
        ("slot", c_uint32),
        ("epoch", c_uint32),
        ("resource", c_uint32),
        ("kind", c_uint8),
        ("reason", c_uint8),
        ("reserved", c_uint16),
    ]


class Tag(Structure):
    """struct lic_tag."""

    _fields_ = [
        ("network", Half),
        ("service", Half),
        ("address", c_uint32 * 4),
        ("port", c_uint16),
        ("protocol", c_uint8),
        ("is_ipv6", c_uint8),
        ("local_port", c_uint16),
        ("kept", c_uint8),
        ("metered", c_uint8),
        ("pid", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("path", c_uint32),
        ("digest", c_uint32),
        ("exec_id", c_uint32),
        ("cgroup", c_uint64),
        ("since_s", c_uint32),
        ("meter", c_uint32),
        ("tx_bytes", c_uint64),
        ("rx_bytes", c_uint64),
    ]


class CounterKey(Structure):
    """struct lic_counter_key."""

    _fields_ = [
        ("license", c_uint32),
        ("resource", c_uint32),
        ("verdict", c_uint32),
        ("reason", c_uint32),
    ]


class RepeatKey(Structure):
    """struct lic_repeat_key."""

    _fields_ = [
        ("pid", c_uint32),
        ("license", c_uint32),
        ("resource", c_uint32),
        ("verdict", c_uint16),
        ("reason", c_uint16),
        ("exec_id", c_uint32),
    ]


class Repeat(Structure):
    """struct lic_repeat."""

    _fields_ = [("emitted_ns", c_uint64), ("pending", c_uint64)]


class Event(Structure):
    """struct lic_event."""

    _fields_ = [
        ("kind", c_uint32),
        ("verdict", c_uint16),
        ("reason", c_uint16),
        ("at_ns", c_uint64),
        ("count", c_uint64),
        ("license", c_uint32),
        ("resource", c_uint32),
        ("rule", c_uint32),
        ("pid", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("path", c_uint32),
        ("digest", c_uint32),
        ("cgroup", c_uint64),
        ("cookie", c_uint64),
        ("exec_ns", c_uint64),
        ("source", c_uint32 * 4),
        ("destination", c_uint32 * 4),
        ("source_port", c_uint16),
        ("destination_port", c_uint16),
        ("protocol", c_uint8),
        ("is_ipv6", c_uint8),
        ("hook", c_uint8),
        ("reserved", c_uint8),
        ("comm", c_char * 16),
        ("device", c_uint32),
        ("exec_id", c_uint32),
        ("inode", c_uint64),
        ("ctime_ns", c_uint64),
    ]


class GuardedKey(Structure):
    """struct lic_guarded_key."""

    _fields_ = [("kind", c_uint32), ("device", c_uint32), ("number", c_uint64)]


class Guard(Structure):
    """struct lic_guard."""

    _fields_ = [
        ("daemon", c_uint32),
        ("locked", c_uint32),
        ("network_namespace", c_uint32),
        ("mount_namespace", c_uint32),
        ("seen", c_uint32),
        ("reserved", c_uint32),
        ("told_ns", c_uint64),
        ("refused", c_uint64),
    ]


class SheetTimes(Structure):
    """struct lic_sheet."""

    _fields_ = [("opened_ns", c_uint64), ("closed_ns", c_uint64)]


class FlowKey(Structure):
    """struct lic_flow_key."""

    _fields_ = [
        ("cgroup", c_uint64),
        ("pid", c_uint32),
        ("exec_id", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("license", c_uint32),
        ("resource", c_uint32),
        ("protocol", c_uint32),
        ("is_free", c_uint32),
    ]


class FlowCount(Structure):
    """struct lic_flow_count."""

    _fields_ = [("payload_bytes", c_uint64), ("wire_bytes", c_uint64), ("packets", c_uint64)]


class Meter(Structure):
    """struct lic_meter."""

    _fields_ = [
        ("key", FlowKey),
        ("start_ns", c_uint64),
        ("inode", c_uint64),
        ("device", c_uint32),
        ("generation", c_uint32),
        ("counts", FlowCount * 2 * 2 * 2),
    ]


class Owner(Structure):
    """struct lic_owner."""

    _fields_ = [
        ("start_ns", c_uint64),
        ("cgroup", c_uint64),
        ("inode", c_uint64),
        ("device", c_uint32),
        ("pid", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
    ]


class WorkKey(Structure):
    """struct lic_work_key."""

    _fields_ = [("sheet", c_uint32), ("path", c_uint32), ("owner", Owner)]


class Work(Structure):
    """struct lic_work."""

    _fields_ = [
        ("cpu_ns", c_uint64),
        ("read_bytes", c_uint64),
        ("write_bytes", c_uint64),
        ("cancelled_bytes", c_uint64),
        ("memory_byte_ms", c_uint64),
        ("processes", c_uint32),
        ("digest", c_uint32),
        ("comm", c_char * 16),
    ]


class Account(Structure):
    """struct lic_account."""

    _fields_ = [
        ("owner", Owner),
        ("since_ns", c_uint64),
        ("seen_ns", c_uint64),
        ("path", c_uint32),
        ("digest", c_uint32),
        ("sampled", c_uint32),
        ("resident_pages", c_uint32),
        ("threads", c_uint32),
        ("reserved", c_uint32),
        ("comm", c_char * 16),
    ]


class Taken(Structure):
    """struct lic_taken."""

    _fields_ = [
        ("cpu_ns", c_uint64),
        ("read_bytes", c_uint64),
        ("write_bytes", c_uint64),
        ("cancelled_bytes", c_uint64),
        ("era", c_uint32),
        ("reserved", c_uint32),
    ]


class SocketRecord(Structure):
    """struct lic_socket_record."""

    _fields_ = [
        ("tag", Tag),
        ("cookie", c_uint64),
        ("holder_pid", c_uint32),
        ("fd", c_uint32),
        ("source", c_uint32 * 4),
        ("destination", c_uint32 * 4),
        ("source_port", c_uint16),
        ("destination_port", c_uint16),
        ("protocol", c_uint8),
        ("is_ipv6", c_uint8),
        ("state", c_uint8),
        ("tagged", c_uint8),
        ("uid", c_uint32),
        ("destroyed", c_uint32),
        ("inode", c_uint64),
    ]


STRUCTS: Final[dict[str, type[Structure]]] = {
    "lic_control": Control,
    "lic_guard": Guard,
    "lic_guarded_key": GuardedKey,
    "lic_policy": Policy,
    "lic_license": License,
    "lic_path_key": PathKey,
    "lic_content_key": ContentKey,
    "lic_content": Content,
    "lic_known": Known,
    "lic_process": Process,
    "lic_cgroup": Cgroup,
    "lic_scope_key": ScopeKey,
    "lic_half": Half,
    "lic_tag": Tag,
    "lic_counter_key": CounterKey,
    "lic_repeat_key": RepeatKey,
    "lic_repeat": Repeat,
    "lic_event": Event,
    "lic_sheet": SheetTimes,
    "lic_flow_key": FlowKey,
    "lic_flow_count": FlowCount,
    "lic_meter": Meter,
    "lic_owner": Owner,
    "lic_work_key": WorkKey,
    "lic_work": Work,
    "lic_account": Account,
    "lic_taken": Taken,
    "lic_socket_record": SocketRecord,
}
"""Struct name in BTF -> its mirror here."""

MAP_SIZES: Final[dict[str, tuple[int, int]]] = {
    "control": (4, ctypes.sizeof(Control)),
    "policies": (4, ctypes.sizeof(Policy)),
    "networks4": (12, 4),
    "networks6": (24, 4),
    "ports": (16, 8),
    "rules": (32, 24),
    "service_ports": (4, 8),
    "licenses": (4, ctypes.sizeof(License)),
    "paths": (ctypes.sizeof(PathKey), 4),
    "contents": (ctypes.sizeof(ContentKey), ctypes.sizeof(Content)),
    "processes": (4, ctypes.sizeof(Process)),
    "scope_names": (ctypes.sizeof(ScopeKey), 4),
    "cgroups": (8, ctypes.sizeof(Cgroup)),
    "tags": (4, ctypes.sizeof(Tag)),
    "counters": (ctypes.sizeof(CounterKey), 8),
    "repeats": (ctypes.sizeof(RepeatKey), ctypes.sizeof(Repeat)),
    "sheets": (4, ctypes.sizeof(SheetTimes)),
    "meters": (4, ctypes.sizeof(Meter)),
    "flows": (ctypes.sizeof(FlowKey), 4),
    "free_meters": (0, 4),
    "faults": (4, 8),
}
"""Bytes of key and value of each map that this package reads or writes."""
