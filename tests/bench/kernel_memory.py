# SPDX-License-Identifier: Apache-2.0
"""Kernel memory of the agent's maps, by the kernel's own count, against a formula."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.table import Row

if TYPE_CHECKING:
    from tests.bench.agent import AgentUnderTest

_BPF: Final = {"x86_64": 321, "aarch64": 280}  # syscall numbers of bpf(2)
_GET_NEXT_KEY: Final = 4
_OBJ_GET: Final = 7

_HASH, _ARRAY, _PERCPU_HASH, _PERCPU_ARRAY, _LRU_HASH = 1, 2, 5, 6, 9
_LPM_TRIE, _SK_STORAGE, _RINGBUF = 11, 24, 27  # enum bpf_map_type, linux/bpf.h
_NAMES: Final = {
    _HASH: "hash",
    _ARRAY: "array",
    _PERCPU_HASH: "per-CPU hash",
    _PERCPU_ARRAY: "per-CPU array",
    _LRU_HASH: "LRU hash",
    _LPM_TRIE: "LPM trie",
    _SK_STORAGE: "socket storage",
    _RINGBUF: "ring buffer",
}
_NO_PREALLOC: Final = 1
_PAGE: Final = 4096
_FIXED: Final = 16384
"""Allowance for a map's own structure and its locks."""

FORMULA: Final = """\
Bound of each map, in bytes, with n entries, keys of k and values of v bytes (both rounded up to \
8), m = max_entries, c = CPUs:

| type | bound |
|---|---|
| hash | 16384 + 16 x 2^ceil(log2 m) + n x (56 + k + v) |
| per-CPU hash | 16384 + 16 x 2^ceil(log2 m) + n x (80 + k + c x v) |
| LRU hash (made whole) | 16384 + 16 x 2^ceil(log2 m) + (m + 128 x c) x (64 + k + v) |
| array | 16384 + m x v, up to whole pages |
| per-CPU array | 16384 + m x (8 + c x v) |
| LPM trie | 16384 + 2 x n x (40 + k + v) (an inner node for each entry at the most) |
| ring buffer | 3 pages + its size + 16384 |
| socket storage | 16384 + 32 x 2^ceil(log2 c); sockets are not in the sum: see their row |

The figures are the kernel's own (`memlock` in fdinfo); its allocator rounds each element up to a
size class, up to a third more. n counts what is in the map. While a policy is switched, the old and
the new one are both there: twice the rules, networks and ports for that time."""


@dataclass(frozen=True, slots=True)
class MapUse:
    """One map as the kernel accounts for it (memlock of its fdinfo)."""

    name: str
    type: int
    flags: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    entries: int
    memory_bytes: int

    @property
    def bound_bytes(self) -> int:
        """The formula's answer."""
        key, value = (-(-size // 8) * 8 for size in (self.key_bytes, self.value_bytes))
        cpus = os.cpu_count() or 1
        buckets = 16 << (self.max_entries - 1).bit_length() if self.max_entries else 0
        held = self.entries if self.flags & _NO_PREALLOC else self.max_entries
        match self.type:
            case 1:
                return _FIXED + buckets + held * (56 + key + value)
            case 5:
                return _FIXED + buckets + held * (80 + key + cpus * value)
            case 9:
                return _FIXED + buckets + (held + 128 * cpus) * (64 + key + value)
            case 2:
                return _FIXED + -(-self.max_entries * value // _PAGE) * _PAGE
            case 6:
                return _FIXED + self.max_entries * (8 + cpus * value)
            case 11:
                return _FIXED + 2 * self.entries * (40 + key + value)
            case 27:
                return _FIXED + 3 * _PAGE + self.max_entries
            case 24:
                return _FIXED + (32 << (cpus - 1).bit_length())
            case _:
                return self.memory_bytes


def _bpf(command: int, attribute: ctypes.Array[ctypes.c_uint64]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(_BPF[platform.machine()], command, attribute, ctypes.sizeof(attribute)))


def _entries(fd: int, key_bytes: int) -> int:
    """Number of keys, by walking them."""
    key = ctypes.create_string_buffer(key_bytes)
    attribute = (ctypes.c_uint64 * 4)(fd, 0, ctypes.addressof(key), 0)
    count = 0
    while _bpf(_GET_NEXT_KEY, attribute) == 0:
        count += 1
        attribute[1] = attribute[2]  # the next key is written over the last one
    return count


def _map_use(pin: Path) -> MapUse | None:
    """The map pinned there; None for a program or a link."""
    path = ctypes.create_string_buffer(os.fsencode(pin))
    attribute = (ctypes.c_uint64 * 2)(ctypes.addressof(path), 0)
    fd = _bpf(_OBJ_GET, attribute)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "cannot open the pin", str(pin))
    try:
        info = {}
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
            field, _, value = line.partition(":")
            info[field] = value.strip()
        if "map_type" not in info:
            return None
        kind = int(info["map_type"])
        counted = kind in {_HASH, _PERCPU_HASH, _LRU_HASH, _LPM_TRIE}
        return MapUse(
            name=pin.name,
            type=kind,
            flags=int(info["map_flags"], 0),
            key_bytes=int(info["key_size"]),
            value_bytes=int(info["value_size"]),
            max_entries=int(info["max_entries"]),
            entries=_entries(fd, int(info["key_size"])) if counted else int(info["max_entries"]),
            memory_bytes=int(info["memlock"]),
        )
    finally:
        os.close(fd)


def of_pins(folder: Path) -> list[MapUse]:
    """Every map pinned below a bpffs folder."""
    pins = sorted(path for path in folder.rglob("*") if path.is_file())
    return [use for use in map(_map_use, pins) if use is not None]


def rows(large: AgentUnderTest, small: AgentUnderTest, bindings: int) -> list[Row]:
    """The row of the table, with the formula and each map below it."""
    uses, few = of_pins(large.bpffs_dir), of_pins(small.bpffs_dir)
    total, fixed = (sum(use.memory_bytes for use in found) for found in (uses, few))
    bound = sum(use.bound_bytes for use in uses)
    lines = [
        f"Kernel memory of the maps: {total / 2**20:.1f} MiB = {fixed / 2**20:.1f} MiB with 10"
        f" bindings and 10 networks, and {(total - fixed) / bindings:.0f} bytes for each further"
        " binding with its share of the networks. " + FORMULA,
        "",
        "| map | type | entries | of | bytes | bound |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {use.name} | {_NAMES.get(use.type, str(use.type))} | {use.entries:,} |"
        f" {use.max_entries:,} | {use.memory_bytes:,} | {use.bound_bytes:,} |"
        for use in sorted(uses, key=lambda use: -use.memory_bytes)
    ]
    return [
        Row(
            f"kernel memory at {bindings:,} bindings",
            f"{total / 2**20:.1f} MiB",
            f"{fixed / 2**20:.1f} MiB with 10 bindings",
            f"formula: {bound / 2**20:.1f} MiB",
            all(use.memory_bytes <= use.bound_bytes for use in uses),
            key="kernel-memory",
            notes=("\n".join(lines),),
        )
    ]
