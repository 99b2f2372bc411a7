# SPDX-License-Identifier: Apache-2.0
"""Reading and clearing whole maps in batches, on maps of each type that the agent has."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from licagent.kernel import libbpf, maps
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.libbpf import BpfError
from licagent.kernel.maps import Map, MappedArray, possible_cpus

TYPES = {"hash": (1, 0), "percpu_hash": (5, 0), "lru_hash": (9, 0), "lpm_trie": (11, 1)}
COUNT = 10_000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    pins = PinFolder(tmp_path / "bpf")
    pins.create()
    try:
        yield pins.maps
    finally:
        pins.remove()


def make(folder: Path, name: str) -> Map:
    """A pinned map with 8-byte keys and values (union bpf_attr of BPF_MAP_CREATE, bpf(2))."""
    kind, flags = TYPES[name]
    attributes = struct.pack("=IIIII", kind, 8, 8, COUNT * 2, flags).ljust(72, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(321, 0, attributes, len(attributes))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    libbpf.check(libbpf.library().bpf_obj_pin(fd, str(folder / name).encode()), "pin")
    os.close(fd)
    return Map(folder / name)


def elements(name: str) -> dict[bytes, bytes]:
    return {
        struct.pack("=I", 32) + number.to_bytes(4, "big"): struct.pack("=Q", number * 3)
        for number in range(COUNT)
    }


def fill(table: Map, name: str) -> dict[bytes, bytes]:
    wanted = elements(name)
    if name == "percpu_hash":
        for key in wanted:
            values = (ctypes.c_uint64 * possible_cpus())(*range(possible_cpus()))
            libbpf.check(libbpf.library().bpf_map_update_elem(table.fd, key, values, 0), "write")
    else:
        table.update_many(wanted.items())
    return wanted


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one-by-one"])
def test_every_element_is_met_once_and_removed(
    folder: Path, name: str, batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not batches:
        monkeypatch.setattr(Map, "batches", Map._one_by_one)
    table = make(folder, name)
    wanted = fill(table, name)

    keys = list(table.keys())
    assert len(keys) == COUNT
    assert set(keys) == set(wanted)
    if name == "percpu_hash":
        with pytest.raises(RuntimeError, match="lookup_sum"):
            next(table.items())
    else:
        assert dict(table.items()) == wanted

    # Some are gone already: the first, one in the middle, the last of a batch, the last.
    order = list(wanted)
    for at in (0, 5_000, 4_095, COUNT - 1):
        assert table.delete(order[at])
    assert table.delete_many(order) == COUNT - 4
    assert list(table.keys()) == []
    assert table.delete_many(order) == 0
    table.close()


def test_an_empty_map_has_no_elements(folder: Path) -> None:
    table = make(folder, "hash")
    assert dict(table.items()) == {}
    table.close()


def test_a_failure_is_not_an_empty_map(folder: Path) -> None:
    table = make(folder, "hash")
    table.close()
    with pytest.raises(BpfError) as caught:
        list(table.keys())
    assert caught.value.errno == errno.EBADF


def test_a_bucket_longer_than_a_batch_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_BATCH", 1)
    table = make(folder, "hash")
    wanted = fill(table, "hash")
    assert dict(table.items()) == wanted
    table.close()


class Number(ctypes.Structure):
    _fields_ = (("value", ctypes.c_uint64),)


def mapped_bytes() -> int:
    """Of this process's mappings of maps."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "bpf-map" in line:
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            total += end - begin
    return total


def test_of_a_shared_array_only_what_is_needed_is_mapped(folder: Path) -> None:
    array, mappable = 2, 1 << 10
    attributes = struct.pack("=IIIII", array, 4, 8, COUNT, mappable).ljust(72, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(321, 0, attributes, len(attributes))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    libbpf.check(libbpf.library().bpf_obj_pin(fd, str(folder / "numbers").encode()), "pin")
    os.close(fd)
    before = mapped_bytes()
    numbers: MappedArray[Number] = MappedArray(folder / "numbers", Number)
    table = Map(folder / "numbers")
    try:
        assert mapped_bytes() - before >= 8 * COUNT
        for index in (0, 1, COUNT - 1):
            numbers[index].value = index + 7
        view = numbers[1]
        numbers.keep(0)
        view.value += 1  # of the old mapping: the memory is the same
        del view
        numbers.keep(0)
        assert [numbers[index].value for index in (0, 1, 2, COUNT - 1)] == [7, 9, 0, COUNT + 6]
        numbers.keep(512)
        assert mapped_bytes() - before <= 8192
        assert len(numbers) == COUNT
        assert numbers.copy(COUNT - 1, 0, 8) == struct.pack("=Q", COUNT + 6)
        numbers.keep(1)
        numbers.clear(COUNT - 1, 0, 8)
        assert table.lookup(struct.pack("=I", COUNT - 1)) == bytes(8)
        assert numbers.snapshot(2) == struct.pack("=QQ", 7, 9)
        for index in (COUNT, -1):
            with pytest.raises(IndexError):
                numbers[index]
        with pytest.raises(IndexError):
            numbers.copy(COUNT, 0, 8)
        numbers.keep(0)
        assert mapped_bytes() == before
    finally:
        numbers.close()
        table.close()
