# SPDX-License-Identifier: Apache-2.0
"""The structs of bpf/licagent.h by which the kernel decides, and tells of it, field by field.

Of policy and licenses, executables and cgroups, tags of sockets, events and the guard.
"""

from __future__ import annotations

from ctypes import Structure, c_char, c_uint8, c_uint16, c_uint32, c_uint64

from licagent.kernel.numbers import MAX_SCOPES, MAX_SHAPES, NAME_LEN, SCOPE_NAME_LEN


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
