# SPDX-License-Identifier: Apache-2.0
"""libbpf by ctypes: the few calls the agent needs, with errors raised as `BpfError`.

Works with libbpf 1.0 and newer (1.0 returns negative errno and null pointers with errno set;
docs "libbpf 1.0 migration guide"). No file of this package calls bpf(2) in another way.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1
BPF_EXIST: Final = 2

_BEFORE: Final = 1 << 3
"""BPF_F_BEFORE; without a program to relate to: before all others."""


class AttachType(IntEnum):
    """enum bpf_attach_type, include/uapi/linux/bpf.h."""

    CGROUP_INET_INGRESS = 0
    CGROUP_INET_EGRESS = 1
    CGROUP_INET_SOCK_CREATE = 2
    CGROUP_INET4_BIND = 8
    CGROUP_INET6_BIND = 9
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_INET4_POST_BIND = 12
    CGROUP_INET6_POST_BIND = 13
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    TRACE_RAW_TP = 23
    TRACE_ITER = 28
    CGROUP_INET_SOCK_RELEASE = 34
    TCX_EGRESS = 47


class BpfError(OSError):
    """A refused BPF call: errno, what was tried, and libbpf's own words if it had any."""

    def __init__(self, number: int, action: str, log: str = "") -> None:
        super().__init__(number, f"{action}: {os.strerror(number)}")
        self.action = action
        self.log = log


class _LinkCreateOpts(ctypes.Structure):
    """struct bpf_link_create_opts up to the flags."""

    _fields_ = [("sz", c_size_t), ("flags", c_uint32), ("_pad", c_uint32)]


SAMPLE_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_PRINT_CALLBACK = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

_log: list[str] = []
_callbacks: list[object] = []


_PROTOTYPES: Final[dict[str, tuple[Any, ...]]] = {
    "bpf_object__open_file": (c_void_p, c_char_p, c_void_p),
    "bpf_object__load": (c_int, c_void_p),
    "bpf_object__close": (None, c_void_p),
    "bpf_object__next_program": (c_void_p, c_void_p, c_void_p),
    "bpf_program__name": (c_char_p, c_void_p),
    "bpf_program__fd": (c_int, c_void_p),
    "bpf_program__set_autoload": (c_int, c_void_p, ctypes.c_bool),
    "bpf_program__set_flags": (c_int, c_void_p, c_uint32),
    "bpf_program__attach": (c_void_p, c_void_p),
    "bpf_link__fd": (c_int, c_void_p),
    "bpf_link__disconnect": (None, c_void_p),
    "bpf_link__destroy": (c_int, c_void_p),
    "bpf_link_create": (c_int, c_int, c_int, c_int, c_void_p),
    "bpf_link_update": (c_int, c_int, c_int, c_void_p),
    "bpf_iter_create": (c_int, c_int),
    "bpf_obj_pin": (c_int, c_int, c_char_p),
    "bpf_obj_get": (c_int, c_char_p),
    "bpf_obj_get_info_by_fd": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_update_elem": (c_int, c_int, c_void_p, c_void_p, c_uint64),
    "bpf_map_lookup_elem": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_lookup_and_delete_elem": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_delete_elem": (c_int, c_int, c_void_p),
    "bpf_map_get_next_key": (c_int, c_int, c_void_p, c_void_p),
    "libbpf_num_possible_cpus": (c_int,),
    "ring_buffer__new": (c_void_p, c_int, SAMPLE_CALLBACK, c_void_p, c_void_p),
    "ring_buffer__free": (None, c_void_p),
    "ring_buffer__consume": (c_int, c_void_p),
    "ring_buffer__epoll_fd": (c_int, c_void_p),
    "bpf_map_update_batch": (c_int, c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p),
    "bpf_map_lookup_batch": (
        c_int,
        c_int,
        c_void_p,
        c_void_p,
        c_void_p,
        c_void_p,
        POINTER(c_uint32),
        c_void_p,
    ),
    "bpf_map_delete_batch": (c_int, c_int, c_void_p, POINTER(c_uint32), c_void_p),
}
"""Result and arguments of each function used (bpf.h and libbpf.h of libbpf 1.1)."""


@cache
def library() -> ctypes.CDLL:
    """libbpf.so.1, with its prototypes set.

    Raises:
        OSError: the library is missing (Debian: apt install libbpf1).
    """
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise OSError(f"libbpf.so.1 is missing; install libbpf1 or libbpf ({error})") from error
    libc = ctypes.CDLL(None)

    for name, (restype, *argtypes) in _PROTOTYPES.items():
        function = getattr(lib, name)
        function.restype = restype
        function.argtypes = argtypes
    vsnprintf = libc.vsnprintf
    vsnprintf.argtypes = [c_void_p, c_size_t, c_char_p, c_void_p]

    def keep(_level: int, text: bytes, arguments: int) -> int:
        buffer = ctypes.create_string_buffer(1 << 20)
        vsnprintf(buffer, len(buffer), text, arguments)
        if _level < 2:  # LIBBPF_DEBUG is 2
            _log.append(buffer.value.decode(errors="replace"))
            del _log[:-200]
        return 0

    callback = _PRINT_CALLBACK(keep)
    _callbacks.append(callback)  # kept alive with the library
    lib.libbpf_set_print.argtypes = [_PRINT_CALLBACK]
    lib.libbpf_set_print.restype = c_void_p
    lib.libbpf_set_print(callback)
    return lib


def check(result: int, action: str) -> int:
    """Return a non-negative result, or raise BpfError with the errno libbpf gave."""
    if result < 0:
        log = "".join(_log)
        _log.clear()
        raise BpfError(-result, action, log)
    return result


def check_pointer(result: int | None, action: str) -> int:
    """Return a pointer, or raise BpfError with the errno that the null one left behind."""
    if not result:
        log = "".join(_log)
        _log.clear()
        raise BpfError(ctypes.get_errno() or 22, action, log)
    return result


def forget_log() -> None:
    """Leave out what libbpf said so far from the next error."""
    _log.clear()


def pin_fd(fd: int, path: Path) -> None:
    """Pin a map, program or link."""
    check(library().bpf_obj_pin(fd, os.fsencode(path)), f"pin {path.name}")


def open_pin(path: Path) -> int:
    """File descriptor of a pinned map, program or link."""
    return check(library().bpf_obj_get(os.fsencode(path)), f"open pin {path.name}")


def link_cgroup(program_fd: int, cgroup_fd: int, attach_type: AttachType) -> int:
    """Attach a program to a cgroup by a link; other agents' programs stay beside it."""
    return check(
        library().bpf_link_create(program_fd, cgroup_fd, int(attach_type), None),
        f"attach {attach_type.name.lower()}",
    )


def link_interface(program_fd: int, ifindex: int) -> int:
    """Attach a program to what an interface of the caller's network namespace sends (TCX).

    Before all others: a program that lets a packet through ends the row of those after it.
    """
    options = _LinkCreateOpts()
    options.sz = ctypes.sizeof(options)
    options.flags = _BEFORE
    return check(
        library().bpf_link_create(program_fd, ifindex, int(AttachType.TCX_EGRESS), byref(options)),
        f"attach to interface {ifindex}",
    )


def update_link(link_fd: int, program_fd: int) -> None:
    """Replace a link's program in one step."""
    check(library().bpf_link_update(link_fd, program_fd, None), "update link")


def iterator_fd(link_fd: int) -> int:
    """A readable run of a pinned iterator."""
    return check(library().bpf_iter_create(link_fd), "start iterator")
