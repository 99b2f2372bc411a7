# SPDX-License-Identifier: Apache-2.0
"""The structs of bpf/licagent.h by which use is counted, field by field: traffic and work."""

from __future__ import annotations

from ctypes import Structure, c_char, c_uint32, c_uint64


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
