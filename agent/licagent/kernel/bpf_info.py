# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of programs, links and maps (bpf_obj_get_info_by_fd)."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_uint32, c_uint64
from dataclasses import dataclass
from typing import Final

from licagent.kernel.libbpf import check, library

_LINK_CGROUP: Final = 3
_LINK_TCX: Final = 11
"""enum bpf_link_type, include/uapi/linux/bpf.h."""


class _ProgInfo(ctypes.Structure):
    """struct bpf_prog_info up to the name and verifier figures used here."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
    ]


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info, with the cgroup member of its union.

    The tcx member is a 32-bit ifindex in the place of the cgroup id.
    """

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_pad", c_uint32),
        ("cgroup_id", c_uint64),
        ("attach_type", c_uint32),
        ("_rest", ctypes.c_uint8 * 40),
    ]


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info up to the name."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    ]


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """A loaded program as the kernel describes it."""

    id: int
    name: str
    tag: str  # of the instructions, hex: equal programs have equal tags
    jited_bytes: int
    xlated_bytes: int


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """An attached link as the kernel describes it."""

    id: int
    program_id: int
    cgroup_id: int  # 0 once the cgroup is gone, or for links that are not on a cgroup
    ifindex: int = 0  # 0 once the interface is gone, or for links that are not on an interface


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map as the kernel describes it."""

    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    name: str


def program_info(fd: int) -> ProgramInfo:
    """What the kernel says of a program."""
    info = _ProgInfo()
    _info(fd, info, "program info")
    return ProgramInfo(
        id=info.id,
        name=info.name.decode(),
        tag=bytes(info.tag).hex(),
        jited_bytes=info.jited_prog_len,
        xlated_bytes=info.xlated_prog_len,
    )


def link_info(fd: int) -> LinkInfo:
    """What the kernel says of a link."""
    info = _LinkInfo()
    _info(fd, info, "link info")
    first = int(info.cgroup_id).to_bytes(8, sys.byteorder)[:4]
    return LinkInfo(
        id=info.id,
        program_id=info.prog_id,
        cgroup_id=info.cgroup_id if info.type == _LINK_CGROUP else 0,
        ifindex=int.from_bytes(first, sys.byteorder) if info.type == _LINK_TCX else 0,
    )


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    info = _MapInfo()
    _info(fd, info, "map info")
    return MapInfo(
        id=info.id,
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        name=info.name.decode(),
    )


def _info(fd: int, structure: ctypes.Structure, what: str) -> None:
    length = c_uint32(ctypes.sizeof(structure))
    check(library().bpf_obj_get_info_by_fd(fd, byref(structure), byref(length)), what)
