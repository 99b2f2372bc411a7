# SPDX-License-Identifier: Apache-2.0
"""Carrying tables from one schema of the maps to the next, before programs change over.

Programs of the new schema look at new maps. Were those empty when the links change over, everything
would pass until the daemon has compiled its policy again. So the loader copies every table whose
shape is the same; a schema that changes a shape adds its conversion here. Tags of open sockets
cannot be copied from outside: the daemon adopts those sockets again, right after.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from licagent.kernel import libbpf
from licagent.kernel.maps import Map

_COPIED: Final = (
    # What `control` refers to comes before it: it puts the policy in force.
    "policies",
    "networks4",
    "networks6",
    "ports",
    "rules",
    "service_ports",
    "paths",
    "contents",
    "scope_names",
    "cgroups",
    "processes",
    "licenses",
    "control",
)

_GROWN: Final = frozenset({"control", "contents", "processes"})
"""Values that got fields: at their end, zero means "not yet", but for what `_conversion` does."""

_PROCESS_1: Final = struct.Struct("=IIQQQII")
_PROCESS_3: Final = struct.Struct("=QQIIQIIII")
"""The beginning of lic_process until schema 2, and from schema 3 on."""
_PROCESS_2_BYTES: Final = 72
_CONTENT_2_BYTES: Final = 4


def migrate(old: Path, new: Path) -> list[str]:
    """Copy the tables of `old` into the fresh maps of `new`; names of those that could not be.

    Counters and folded events begin anew: the event log has what was told.
    """
    left = []
    for name in _COPIED:
        if not (old / name).exists() or not (new / name).exists():
            left.append(name)
            continue
        source, target = Map(old / name), Map(new / name)
        try:
            if _shape(source) == _shape(target):
                target.update_many(source.items())
            elif name in _GROWN and _has_grown(source, target):
                convert = _conversion(name, source.info.value_size)
                size = target.info.value_size
                target.update_many(
                    (key, convert(value).ljust(size, b"\0")) for key, value in source.items()
                )
            else:
                left.append(name)
        except libbpf.BpfError:
            left.append(name)
        finally:
            source.close()
            target.close()
    return left


def _conversion(name: str, size: int) -> Callable[[bytes], bytes]:
    """How values of `size` bytes begin in this schema."""
    if name == "processes" and size <= _PROCESS_2_BYTES:
        return process_of_2
    if name == "contents" and size == _CONTENT_2_BYTES:
        # Who executed it earlier has it in its entry already; for whom it holds is not known.
        from_ns = struct.pack("=IQ", 0, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        return lambda value: value + from_ns
    return bytes


def process_of_2(value: bytes) -> bytes:
    """A lic_process of schema 1 or 2 as one of schema 3: what its exec was granted stays."""
    path, digest, exec_ns, inode, ctime_ns, device, measured = _PROCESS_1.unpack_from(value)
    exec_id = exec_ns & 0xFFFFFFFF
    known = (exec_id, path, exec_id, digest)
    head = _PROCESS_3.pack(inode, ctime_ns, device, measured, exec_ns, *known)
    return head + value[_PROCESS_1.size :]


def _shape(table: Map) -> tuple[int, int, int]:
    return table.info.type, table.info.key_size, table.info.value_size


def _has_grown(source: Map, target: Map) -> bool:
    older, newer = _shape(source), _shape(target)
    return older[:2] == newer[:2] and older[2] < newer[2]


def remove(folder: Path) -> None:
    """Unpin the maps of a schema that no program uses any more."""
    for pin in sorted(folder.iterdir()):
        pin.unlink()
    folder.rmdir()
