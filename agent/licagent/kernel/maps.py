# SPDX-License-Identifier: Apache-2.0
"""Pinned maps as Python sees them: single elements, whole batches, memory-mapped arrays."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from ctypes import byref, c_uint32
from functools import cache
from pathlib import Path
from typing import Final, Generic, TypeVar

from licagent.kernel import libbpf
from licagent.kernel.layout import MAP_SIZES

_BATCH: Final = 4096

Element = TypeVar("Element", bound=ctypes.Structure)


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map holds for each key (cpu_possible_mask)."""
    return libbpf.check(libbpf.library().libbpf_num_possible_cpus(), "count CPUs")


class Map:
    """A pinned map; keys and values are bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = libbpf.open_pin(path)
        self.info = libbpf.map_info(self.fd)

    def close(self) -> None:
        """Close the descriptor; the pin stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None. Not for per-CPU maps."""
        value = ctypes.create_string_buffer(self.info.value_size)
        result = libbpf.library().bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        libbpf.check(result, f"look up in {self.path.name}")
        return value.raw

    def lookup_sum(self, key: bytes) -> int:
        """Sum over all CPUs of a per-CPU map of 64-bit numbers."""
        buffer = (ctypes.c_uint64 * possible_cpus())()
        result = libbpf.library().bpf_map_lookup_elem(self.fd, key, buffer)
        if result == -errno.ENOENT:
            return 0
        libbpf.check(result, f"look up in {self.path.name}")
        return sum(buffer)

    def update(self, key: bytes, value: bytes, flags: int = libbpf.BPF_ANY) -> None:
        """Write one element.

        Raises:
            BpfError: E2BIG when the map is full.
        """
        libbpf.check(
            libbpf.library().bpf_map_update_elem(self.fd, key, value, flags),
            f"write to {self.path.name}",
        )

    def delete(self, key: bytes) -> bool:
        """Remove one element; False if it was not there."""
        result = libbpf.library().bpf_map_delete_elem(self.fd, key)
        if result == -errno.ENOENT:
            return False
        libbpf.check(result, f"remove from {self.path.name}")
        return True

    def update_many(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        """Write many elements, in batches where the map type has them. Returns how many."""
        total = 0
        keys = bytearray()
        values = bytearray()
        pending = 0
        for key, value in items:
            keys += key
            values += value
            pending += 1
            if pending == _BATCH:
                self._flush(keys, values, pending)
                total += pending
                keys.clear()
                values.clear()
                pending = 0
        if pending:
            self._flush(keys, values, pending)
        return total + pending

    def _flush(self, keys: bytearray, values: bytearray, count: int) -> None:
        done = c_uint32(count)
        result = libbpf.library().bpf_map_update_batch(
            self.fd, bytes(keys), bytes(values), byref(done), None
        )
        if result == 0:
            return
        if result not in (-524, -errno.EOPNOTSUPP, -errno.EINVAL):  # 524: ENOTSUPP, not in errno
            libbpf.check(result, f"write to {self.path.name}")
        key_size, value_size = self.info.key_size, self.info.value_size
        for index in range(count):
            self.update(
                bytes(keys[index * key_size : (index + 1) * key_size]),
                bytes(values[index * value_size : (index + 1) * value_size]),
            )

    def keys(self) -> Iterator[bytes]:
        """All keys. Elements that are deleted meanwhile may make the walk start over."""
        key = ctypes.create_string_buffer(self.info.key_size)
        following = ctypes.create_string_buffer(self.info.key_size)
        result = libbpf.library().bpf_map_get_next_key(self.fd, None, following)
        while result == 0:
            yield following.raw
            ctypes.memmove(key, following, self.info.key_size)
            result = libbpf.library().bpf_map_get_next_key(self.fd, key, following)
        if result != -errno.ENOENT:
            libbpf.check(result, f"list {self.path.name}")

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Remove many elements; those that are gone already do not matter."""
        total = 0
        for key in keys:
            total += self.delete(key)
        return total

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All elements. Not for per-CPU maps."""
        for key in list(self.keys()):
            value = self.lookup(key)
            if value is not None:
                yield key, value


class MappedArray(Generic[Element]):
    """An array map shared with the kernel by mmap: each aligned word is written in one store.

    Kernel commit fc9702273e2e (5.5). `array[i]` is a live view: assigning a field is at once
    seen by every program.
    """

    def __init__(self, path: Path, element: type[Element]) -> None:
        self.map = Map(path)
        stride = (self.map.info.value_size + 7) & ~7
        if ctypes.sizeof(element) != stride:
            raise libbpf.BpfError(
                errno.EPROTO, f"{path.name}: elements of {stride} bytes, expected another layout"
            )
        self._memory = mmap.mmap(
            self.map.fd,
            stride * self.map.info.max_entries,
            mmap.MAP_SHARED,
            mmap.PROT_READ | mmap.PROT_WRITE,
        )
        self._elements = (element * self.map.info.max_entries).from_buffer(self._memory)

    def __getitem__(self, index: int) -> Element:
        return self._elements[index]

    def __len__(self) -> int:
        return self.map.info.max_entries

    def snapshot(self, count: int) -> bytes:
        """The first `count` elements, copied at once."""
        return ctypes.string_at(
            ctypes.addressof(self._elements), count * ctypes.sizeof(self._elements[0])
        )

    def close(self) -> None:
        """Unmap."""
        del self._elements
        with contextlib.suppress(BufferError):  # a view is still held; it dies with its holder
            self._memory.close()
        self.map.close()


def check_layout(folder: Path) -> None:
    """Compare the pinned maps with this version's structs, before anything is written to them.

    Raises:
        BpfError: EPROTO, with the first map of another shape: the pins are of another build.
    """
    for name, expected in MAP_SIZES.items():
        table = Map(folder / name)
        try:
            found = (table.info.key_size, table.info.value_size)
        finally:
            table.close()
        if found != expected:
            raise libbpf.BpfError(
                errno.EPROTO,
                f"{name} has keys and values of {found} bytes, this version {expected}: "
                "run `licagent detach`, then start again",
            )
