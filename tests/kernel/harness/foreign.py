# SPDX-License-Identifier: Apache-2.0
"""Cgroup programs of somebody else: one attached as the old tools do, one by a pinned link."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.kernel import bpf_info, libbpf
from licagent.kernel.libbpf import AttachType, check, library

_PROG_TYPE_CGROUP_SKB: Final = 8  # enum bpf_prog_type
_ALLOW_MULTI: Final = 2  # BPF_F_ALLOW_MULTI
_RETURN_1: Final = bytes.fromhex("b7000000010000009500000000000000")  # r0 = 1; exit
_IDS_MAX: Final = 64


def foreign_program() -> int:
    """A cgroup_skb program that lets everything pass."""
    load = library().bpf_prog_load
    load.restype = ctypes.c_int
    instructions = ctypes.create_string_buffer(_RETURN_1, len(_RETURN_1))
    return check(
        load(
            _PROG_TYPE_CGROUP_SKB,
            b"foreign",
            b"GPL",
            instructions,
            ctypes.c_size_t(len(_RETURN_1) // 8),
            None,
        ),
        "load a foreign program",
    )


def attached(cgroup: Path, attach_type: AttachType) -> list[int]:
    """Ids of the programs attached to a cgroup itself (BPF_PROG_QUERY)."""
    ids = (ctypes.c_uint32 * _IDS_MAX)()
    count, flags = ctypes.c_uint32(_IDS_MAX), ctypes.c_uint32()
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        check(
            library().bpf_prog_query(
                fd, int(attach_type), 0, ctypes.byref(flags), ids, ctypes.byref(count)
            ),
            "query a cgroup",
        )
    finally:
        os.close(fd)
    return list(ids[: count.value])


def program_exists(number: int) -> bool:
    """Whether a program of this id is still in the kernel (root only)."""
    fd = library().bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
    if fd < 0:
        return False
    os.close(fd)
    return True


@dataclass(frozen=True, slots=True)
class Foreign:
    """What somebody else has on a cgroup."""

    cgroup: Path
    attach_type: AttachType
    legacy_id: int
    link_id: int
    pin: Path

    @classmethod
    def attach(cls, cgroup: Path, attach_type: AttachType, pin: Path) -> Foreign:
        """Attach both; they stay when this process ends, as long as cgroup and pin do."""
        folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        legacy, linked = foreign_program(), foreign_program()
        try:
            check(
                library().bpf_prog_attach(legacy, folder, int(attach_type), _ALLOW_MULTI),
                "attach a foreign program",
            )
            link = libbpf.link_cgroup(linked, folder, attach_type)
            libbpf.pin_fd(link, pin)
            os.close(link)
            ids = bpf_info.program_info(legacy).id, bpf_info.program_info(linked).id
        finally:
            for fd in (legacy, linked, folder):
                os.close(fd)
        return cls(cgroup, attach_type, *ids, pin)

    def is_untouched(self) -> bool:
        """Both are attached still, and the pin is there."""
        return self.pin.exists() and {self.legacy_id, self.link_id} <= set(
            attached(self.cgroup, self.attach_type)
        )
