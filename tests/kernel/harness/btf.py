# SPDX-License-Identifier: Apache-2.0
"""Structs and enumerations as BTF describes them, read by libbpf."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.kernel.libbpf import library

_STRUCT: Final = 4  # BTF_KIND_STRUCT, include/uapi/linux/btf.h
_ENUM: Final = 6


@dataclass(frozen=True, slots=True)
class BtfStruct:
    """A struct: its size, and offset and size of each member, in bytes."""

    size: int
    members: dict[str, tuple[int, int]]


class _Type(ctypes.Structure):
    _fields_ = [("name", c_uint32), ("info", c_uint32), ("size", c_uint32)]


class _Member(ctypes.Structure):
    _fields_ = [("name", c_uint32), ("type", c_uint32), ("offset", c_uint32)]


class _Enumerator(ctypes.Structure):
    _fields_ = [("name", c_uint32), ("value", ctypes.c_int32)]


def _calls() -> ctypes.CDLL:
    lib = library()
    for name, result, arguments in (
        ("btf__parse", c_void_p, [c_char_p, c_void_p]),
        ("btf__free", None, [c_void_p]),
        ("btf__type_cnt", c_uint32, [c_void_p]),
        ("btf__type_by_id", POINTER(_Type), [c_void_p, c_uint32]),
        ("btf__name_by_offset", c_char_p, [c_void_p, c_uint32]),
        ("btf__resolve_size", ctypes.c_int64, [c_void_p, c_uint32]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@dataclass(frozen=True, slots=True)
class Btf:
    """All named structs and enumerations of one object file."""

    structs: dict[str, BtfStruct]
    enums: dict[str, dict[str, int]]

    @classmethod
    def read(cls, path: Path) -> Btf:
        """Read an ELF object's BTF; OSError where it has none."""
        lib = _calls()
        handle = lib.btf__parse(os.fsencode(path), None)
        if not handle:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        try:
            found = cls({}, {})
            for number in range(1, lib.btf__type_cnt(handle)):
                found._take(lib, handle, lib.btf__type_by_id(handle, number))
            return found
        finally:
            lib.btf__free(handle)

    def _take(self, lib: ctypes.CDLL, handle: int, entry: ctypes._Pointer[_Type]) -> None:
        kind = entry.contents.info >> 24 & 0x1F
        count = entry.contents.info & 0xFFFF
        name = lib.btf__name_by_offset(handle, entry.contents.name).decode()

        def names(kind: type[ctypes.Structure]) -> Iterator[tuple[str, ctypes.Structure]]:
            start = ctypes.addressof(entry.contents) + ctypes.sizeof(_Type)
            for element in (kind * count).from_address(start):
                yield lib.btf__name_by_offset(handle, element.name).decode(), element

        if kind == _STRUCT and name:
            members = {
                word: (member.offset // 8, int(lib.btf__resolve_size(handle, member.type)))
                for word, member in names(_Member)
            }
            self.structs[name] = BtfStruct(entry.contents.size, members)
        elif kind == _ENUM and name:
            self.enums[name] = {word: one.value for word, one in names(_Enumerator)}
