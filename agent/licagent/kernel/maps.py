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

from licagent.kernel import bpf_info, libbpf
from licagent.kernel.layout import MAP_SIZES

_BATCH: Final = 4096
_BATCH_MAX: Final = 1 << 20
_NO_BATCHES: Final = (-524, -errno.EOPNOTSUPP, -errno.EINVAL)  # 524: ENOTSUPP, not in errno
_PER_CPU: Final = (5, 6, 10, 21)
"""Types of bpf(2) with a value for each CPU: PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, ..."""

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
        self.info = bpf_info.map_info(self.fd)

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
        if result not in _NO_BATCHES:
            libbpf.check(result, f"write to {self.path.name}")
        key_size, value_size = self.info.key_size, self.info.value_size
        for index in range(count):
            self.update(
                bytes(keys[index * key_size : (index + 1) * key_size]),
                bytes(values[index * value_size : (index + 1) * value_size]),
            )

    def keys(self) -> Iterator[bytes]:
        """All keys; see `items` for what happens to those that come and go meanwhile."""
        for keys, _values, count in self.batches():
            size = self.info.key_size
            for at in range(0, count * size, size):
                yield keys[at : at + size]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All elements, bucket by bucket. Not for per-CPU maps.

        Elements that stay are met once each; of those that come or go meanwhile, some are met.
        """
        if self.info.type in _PER_CPU:
            raise RuntimeError(f"{self.path.name} has a value for each CPU: use lookup_sum")
        size, value_size = self.info.key_size, self.info.value_size
        for keys, values, count in self.batches():
            for index in range(count):
                yield (
                    keys[index * size : (index + 1) * size],
                    values[index * value_size : (index + 1) * value_size],
                )

    def batches(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Keys, values and count of many elements at a time (BPF_MAP_LOOKUP_BATCH, 5.6).

        Keys stand one after the other, and so do values. See `items` for what is met.
        """
        width = self.info.value_size
        if self.info.type in _PER_CPU:
            width = ((width + 7) & ~7) * possible_cpus()
        size = min(_BATCH, self.info.max_entries)
        # The position is a bucket's number for hashes, a key for tries.
        position = ctypes.create_string_buffer(max(self.info.key_size, 8))
        first = True
        while True:
            keys = ctypes.create_string_buffer(size * self.info.key_size)
            values = ctypes.create_string_buffer(size * width)
            count = c_uint32(size)
            result = libbpf.library().bpf_map_lookup_batch(
                self.fd, None if first else position, position, keys, values, byref(count), None
            )
            if result == -errno.ENOSPC and size < _BATCH_MAX:  # a bucket is longer than that
                size *= 2
                continue
            if first and result in _NO_BATCHES:
                yield from self._one_by_one()
                return
            if result != -errno.ENOENT:
                libbpf.check(result, f"list {self.path.name}")
            first = False
            yield (
                keys.raw[: count.value * self.info.key_size],
                values.raw[: count.value * width],
                count.value,
            )
            if result == -errno.ENOENT:
                return

    def _one_by_one(self) -> Iterator[tuple[bytes, bytes, int]]:
        """As `_batches`, for map types and kernels without them; values only where they fit."""
        for key in list(self._walk()):
            value = b"" if self.info.type in _PER_CPU else self.lookup(key)
            if value is not None:
                yield key, value, 1

    def _walk(self) -> Iterator[bytes]:
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
        """Remove many elements, in batches where the map type has them; how many were there."""
        return self.delete_packed(b"".join(keys))

    def delete_packed(self, keys: bytes) -> int:
        """As `delete_many`; the keys stand one after the other, as `batches` gives them."""
        size = self.info.key_size
        total = 0
        at = 0
        while at < len(keys):
            part = keys[at : at + _BATCH * size]
            done = c_uint32(len(part) // size)
            result = libbpf.library().bpf_map_delete_batch(self.fd, part, byref(done), None)
            if result in _NO_BATCHES:
                left = range(at, len(keys), size)
                return total + sum(self.delete(keys[here : here + size]) for here in left)
            total += done.value
            at += done.value * size
            if result == -errno.ENOENT:  # the next one had gone already
                at += size
            else:
                libbpf.check(result, f"remove from {self.path.name}")
        return total


class Queue:
    """A pinned queue: what is put in at one end comes out at the other (bpf(2), 4.20)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = libbpf.open_pin(path)
        self._size = bpf_info.map_info(self._fd).value_size

    def push(self, value: bytes) -> None:
        """Put one in. Raises BpfError: E2BIG when it is full."""
        libbpf.check(
            libbpf.library().bpf_map_update_elem(self._fd, None, value, libbpf.BPF_ANY),
            f"put into {self.path.name}",
        )

    def pop(self) -> bytes | None:
        """Take the oldest out, or None."""
        value = ctypes.create_string_buffer(self._size)
        result = libbpf.library().bpf_map_lookup_and_delete_elem(self._fd, None, value)
        if result == -errno.ENOENT:
            return None
        libbpf.check(result, f"take from {self.path.name}")
        return value.raw

    def close(self) -> None:
        """Close the descriptor; the pin stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class MappedArray(Generic[Element]):
    """An array map shared with the kernel by mmap: each aligned word is written in one store.

    Kernel commit fc9702273e2e (5.5). `array[i]` is a live view: assigning a field is at once
    seen by every program. What is mapped counts as the daemon's resident memory, though the
    kernel has it anyway: `keep` lets go of what is not needed for a while.
    """

    def __init__(self, path: Path, element: type[Element]) -> None:
        self.map = Map(path)
        stride = (self.map.info.value_size + 7) & ~7
        if ctypes.sizeof(element) != stride:
            raise libbpf.BpfError(
                errno.EPROTO, f"{path.name}: elements of {stride} bytes, expected another layout"
            )
        self._stride = stride
        self._element = element
        self._memory: mmap.mmap | None = None
        self._elements = (element * 0)()
        self._mapped = 0
        self._map(len(self))

    def _map(self, count: int) -> None:
        self._unmap()
        if count:
            length = self._stride * count
            access = mmap.PROT_READ | mmap.PROT_WRITE
            self._memory = mmap.mmap(self.map.fd, length, mmap.MAP_SHARED, access)
            self._elements = (self._element * count).from_buffer(self._memory)
        self._mapped = count

    def _unmap(self) -> None:
        memory, self._memory = self._memory, None
        self._elements = (self._element * 0)()
        if memory is not None:
            with contextlib.suppress(BufferError):  # a view is still held; it dies with its holder
                memory.close()

    def keep(self, count: int) -> None:
        """Have the first `count` elements mapped and no more, until one of the others is asked
        for. Views stay what they are.
        """
        if count < self._mapped:
            self._map(count)

    def _need(self, count: int) -> None:
        """Map at least so many, and twice as many as before: who asks may ask for more."""
        if count > len(self):
            raise IndexError(f"{self.map.path.name} has {len(self)} elements")
        if count > self._mapped:
            self._map(min(len(self), max(count, 2 * self._mapped)))

    def _reaching(self, end: int) -> mmap.mmap:
        """The memory, at least up to this byte."""
        if end > self._mapped * self._stride or self._memory is None:
            self._need(-(-end // self._stride))
        if self._memory is None:
            raise ValueError("no byte was asked for")
        return self._memory

    def __getitem__(self, index: int) -> Element:
        if not 0 <= index < self._mapped:
            self._need(index + 1 if index >= 0 else len(self) + 1)
        return self._elements[index]

    def __len__(self) -> int:
        return self.map.info.max_entries

    def snapshot(self, count: int) -> bytes:
        """The first `count` elements, copied at once."""
        return self.copy(0, 0, count * self._stride)

    def copy(self, index: int, offset: int, length: int) -> bytes:
        """Some bytes from one element on, without making a view of it."""
        at = index * self._stride + offset
        return self._reaching(at + length)[at : at + length]

    def clear(self, index: int, offset: int, length: int) -> None:
        """Zero some bytes of one element that no program writes to now."""
        at = index * self._stride + offset
        self._reaching(at + length)[at : at + length] = bytes(length)

    def close(self) -> None:
        """Unmap."""
        self._unmap()
        self._mapped = 0
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
