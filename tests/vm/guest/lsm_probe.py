# SPDX-License-Identifier: Apache-2.0
"""What the LSM programs refuse, and to whom: a part of kernel_probe.py.

Sockets of other families by user, license and mode; and what another root process may do to the
agent's links, maps and pins while a daemon has them locked, and after it was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from licagent.domain.compiler import compile_policy
from licagent.domain.policy import parse_policy
from licagent.domain.reason import Reason
from licagent.kernel import bpf_info, libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord
from licagent.kernel.enforcement_structs import Event
from licagent.kernel.events import EventReader
from licagent.kernel.guard import GuardTables
from licagent.kernel.licenses import LicenseTable
from licagent.kernel.numbers import EventKind
from licagent.kernel.tables import TableWriter
from lictoken.claims import License

AF_PPPOX: Final = 24
AF_XDP: Final = 44
AF_TIPC: Final = 30
UNLICENSED: Final = """
[[resource]]
name = "orders-db"
kind = "network"
mode = "enforce"
destinations = [{ cidr = "127.0.0.1/32", ports = ["9000"] }]

[[binding]]
license = "acme"
resources = ["orders-db"]
selectors = ["unix:uid:1000"]
"""
OBSERVED: Final = (
    UNLICENSED.replace('mode = "enforce"', 'mode = "observe"')
    + """
[[resource]]
name = "web"
kind = "service"
mode = "enforce"
ports = ["8080"]
protocol = "tcp"

[[binding]]
license = "acme"
resources = ["web"]
selectors = ["unix:uid:1000"]
"""
)
"""Its network is only observed; what it enforces is a service."""
NAMED: Final = """
[[resource]]
name = "web"
kind = "network"
mode = "enforce"
destinations = [{ cidr = "0.0.0.0/0", protocol = "other" }]

[[binding]]
license = "acme"
selectors = ["unix:uid:1000"]
"""
_BPF_SYSCALL: Final = 321  # x86-64
_PTRACE_ATTACH: Final = 16
_MNT_DETACH: Final = 2
_CLONE_NEWPID: Final = 0x20000000
_RDONLY: Final = 1 << 3  # BPF_F_RDONLY
_EXTENSION: Final = 28  # BPF_PROG_TYPE_EXT
_KIND_FUNC: Final = 12  # BTF_KIND_FUNC
_INFO_BYTES: Final = 136  # of struct bpf_prog_info, up to and with its btf_id
_INFO_BTF_ID: Final = 128

_HARMLESS: Final = (
    "open a table",
    "open a table by id",
    "program on a table",
    "replace",
    "replace a function",
    "take its descriptor",
)
"""Attempts that change nothing where they succeed."""

Inside = Callable[[int, Callable[[], Any]], Any]
ErrnoOf = Callable[[Callable[[], object]], str]


def families(
    pins: PinFolder, held: License, numbers: Any, inside: Inside, errno_of: ErrnoOf
) -> dict[str, str]:
    """Who may make sockets of other families: no resource names them, one does, observing."""
    control = ControlWord(pins)
    licenses, tables = LicenseTable(pins), TableWriter(pins, control)
    licenses.set(held.number, Reason.LICENSED, 0, 2**62)

    def switch(text: str, *, enforce: bool) -> None:
        policy = parse_policy([("families.toml", text)])
        compiled = compile_policy(policy, {held.jti: held}, numbers, lambda _name: None)
        tables.switch(compiled, licenses.slot, enforce=enforce, keep_existing=False)

    def make(uid: int, family: int, kind: int = socket.SOCK_RAW) -> str:
        return str(inside(uid, lambda: errno_of(lambda: _close(_socket(family, kind)))))

    switch(UNLICENSED, enforce=True)
    found = {
        "unnamed packet": make(1001, socket.AF_PACKET),
        "unnamed xdp": make(1001, AF_XDP),
        "unnamed vsock": make(1001, socket.AF_VSOCK, socket.SOCK_STREAM),
        "unnamed tipc by root": make(0, AF_TIPC, socket.SOCK_DGRAM),
        "unnamed pppox": make(1001, AF_PPPOX),
        "packet by the host's network": make(0, socket.AF_PACKET),
        "pppox by the host's network": make(0, AF_PPPOX),
        "unix": make(1001, socket.AF_UNIX, socket.SOCK_STREAM),
        "netlink": make(1001, socket.AF_NETLINK),
        "inet": make(1001, socket.AF_INET, socket.SOCK_STREAM),
    }
    switch(UNLICENSED, enforce=False)
    found["observed vsock"] = make(1001, socket.AF_VSOCK, socket.SOCK_STREAM)
    switch(OBSERVED, enforce=True)
    found["observed network's vsock"] = make(1001, socket.AF_VSOCK, socket.SOCK_STREAM)
    switch(NAMED, enforce=True)
    found["named vsock"] = make(1001, socket.AF_VSOCK, socket.SOCK_STREAM)
    found["licensed vsock"] = make(1000, socket.AF_VSOCK, socket.SOCK_STREAM)
    licenses.set(held.number, Reason.REVOKED, 0, 0)
    found["revoked vsock"] = make(1000, socket.AF_VSOCK, socket.SOCK_STREAM)
    return found


def _socket(family: int, kind: int) -> int:
    """socket(2) itself: Python's asks the new socket for more than some kinds know."""
    fd = int(ctypes.CDLL(None, use_errno=True).socket(family, kind, 0))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def _close(fd: int) -> None:
    os.close(fd)


def guard(pins: PinFolder, errno_of: ErrnoOf) -> dict[str, Any]:
    """What another root process may do while a daemon lives, and when it is dead."""
    events: list[Event] = []
    reader = EventReader(pins, events.append)
    parent, child = socket.socketpair()
    daemon = os.fork()
    if daemon == 0:
        tables = GuardTables(pins)
        while word := child.recv(1):
            is_locked = False
            if word == b"l":
                is_locked = tables.lock()
            else:
                tables.unlock()
            child.send(b"1" if is_locked else b"0")
        os._exit(0)
    # Who locks is a child, and who tries is not: neither descends from the other.
    tries = attempts(pins, daemon)
    found: dict[str, Any] = {
        "before it locks": {
            name: errno_of(action) for name, action in tries.items() if name in _HARMLESS
        }
    }
    parent.send(b"l")
    found["locked"] = parent.recv(1) == b"1"
    found["while it lives"] = {name: errno_of(action) for name, action in tries.items()}
    reader.consume()
    found["told"] = sum(event.count for event in events if event.kind == EventKind.GUARD)
    parent.send(b"u")
    parent.recv(1)
    found["unlocked by itself"] = {
        name: errno_of(action) for name, action in tries.items() if name in _HARMLESS
    }
    found["without a lock in a namespace of its own"] = not _locks_as_pid_1(pins)
    parent.send(b"l")
    found["locked again"] = parent.recv(1) == b"1"
    os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)
    found["unlocked by its death"] = not GuardTables(pins).read().locked
    link = libbpf.open_pin(pins.links / "cgroup_connect6")
    found["detach after its death"] = errno_of(lambda: _call("bpf_link_detach", link))
    return found


def _locks_as_pid_1(pins: PinFolder) -> bool:
    """Whether a daemon locks in a process namespace, where its number is not the kernel's."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWPID)")
    child = os.fork()
    if child == 0:
        status = 2
        with contextlib.suppress(OSError):
            status = int(GuardTables(pins).lock())
        os._exit(status)
    return os.waitpid(child, 0)[1] != 0 or bool(GuardTables(pins).read().locked)


def attempts(pins: PinFolder, daemon: int) -> dict[str, Callable[[], object]]:
    """What somebody else may try on the agent's kernel side; those that may are named so."""
    pin = pins.links / "cgroup_connect4"
    link = libbpf.open_pin(pin)
    info = bpf_info.link_info(link)
    libc = ctypes.CDLL(None, use_errno=True)
    readable = _bpf_obj_get(pins.maps / "control", _RDONLY)
    map_id = bpf_info.map_info(readable).id
    program = int(libbpf.library().bpf_prog_get_fd_by_id(info.program_id))

    def checked(result: int) -> None:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    found: dict[str, Callable[[], object]] = {}
    with contextlib.suppress(PermissionError):  # locked by now
        extension = _extension(program, "licagent_connect4")
        link_create = libbpf.library().bpf_link_create
        found["attach a function"] = lambda: libbpf.check(
            link_create(extension, 0, 0, None), "bpf_link_create"
        )
    return found | {
        "detach": lambda: _call("bpf_link_detach", link),
        "replace": lambda: libbpf.update_link(link, program),
        "remove a pin": pin.unlink,
        "move a pin": lambda: pin.rename(pin.parent.parent / "elsewhere"),
        "move another over a pin": lambda: _move_over(pin),
        "move another beside it": lambda: _move_over(pin.with_name("elsewhere")),
        "replace a function": lambda: os.close(_extension(program, "licagent_connect4")),
        "move the folder": lambda: pins.root.rename(pins.root.parent / "elsewhere"),
        "unmount": lambda: checked(libc.umount2(b"/sys/fs/bpf", _MNT_DETACH)),
        "open a table": lambda: _bpf_obj_get(pins.maps / "control", 0),
        "open a table by id": lambda: _call("bpf_map_get_fd_by_id", map_id),
        "program on a table": lambda: _load(readable),
        "trace the daemon": lambda: checked(libc.ptrace(_PTRACE_ATTACH, daemon, 0, 0)),
        "take its descriptor": lambda: checked(libc.syscall(438, _pidfd(daemon), 0, 0)),
        "program on no table: may": lambda: _load(None),
        "read a table: may": lambda: _bpf_obj_get(pins.maps / "control", _RDONLY),
        "read its state: may": lambda: os.readlink(f"/proc/{daemon}/exe"),
    }


def _move_over(pin: Path) -> None:
    """Rename a pin of somebody else onto one of ours."""
    other = Path("/sys/fs/bpf/somebody_elses")
    program = _load(None)
    try:
        libbpf.pin_fd(program, other)
        other.rename(pin)
    finally:
        os.close(program)
        other.unlink(missing_ok=True)


def _extension(target: int, function: str) -> int:
    """Load a program (freplace) that would take the place of a function of `target`.

    The types of the target serve it, too, so that its arguments fit.
    """
    info = ctypes.create_string_buffer(_INFO_BYTES)
    _bpf(15, struct.pack("=IIQ", target, len(info), ctypes.addressof(info)))
    (types_id,) = struct.unpack_from("=I", info, _INFO_BTF_ID)
    types = _call("bpf_btf_get_fd_by_id", types_id)
    library = libbpf.library()
    library.btf__load_from_kernel_by_id.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.btf__load_from_kernel_by_id(types_id))
    name = ctypes.c_char_p(function.encode())
    number = libbpf.check(library.btf__find_by_name_kind(handle, name, _KIND_FUNC), function)
    code = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions = ctypes.create_string_buffer(code, len(code))
    words = ctypes.create_string_buffer(b"GPL")
    functions = ctypes.create_string_buffer(struct.pack("=II", 0, number), 8)
    attributes = struct.pack(
        "=IIQQ", _EXTENSION, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(words)
    )
    attributes += bytes(48) + struct.pack("=IIQI", types, 8, ctypes.addressof(functions), 1)
    attributes += bytes(16) + struct.pack("=III", number, target, 0)
    try:
        return _bpf(5, attributes)
    finally:
        os.close(types)


def _pidfd(pid: int) -> int:
    return os.pidfd_open(pid)


def _call(name: str, number: int) -> int:
    function = getattr(libbpf.library(), name)
    return libbpf.check(int(function(ctypes.c_int(number))), name)


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(libc.syscall(_BPF_SYSCALL, command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _bpf_obj_get(path: Path, flags: int) -> int:
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(7, struct.pack("=QII", ctypes.addressof(name), 0, flags))


def _load(map_fd: int | None) -> int:
    """A socket filter that names a map, as a program of somebody else that writes to it would."""
    code = b""
    if map_fd is not None:  # r1 = map, in two halves
        code += struct.pack("=BBhi", 0x18, 1 | 1 << 4, 0, map_fd) + bytes(8)
    code += struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions = ctypes.create_string_buffer(code, len(code))
    words = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ", 1, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(words)
    )
    return _bpf(5, attributes + bytes(24))


def problems(found: dict[str, Any]) -> list[str]:
    """What is not as it should be, where the kernel has BPF among its modules."""
    made = found["families"]
    wanted = {
        **dict.fromkeys((name for name in made if name.startswith(("unnamed", "named"))), "ENOKEY"),
        **dict.fromkeys(("packet by the host's network", "unix", "netlink", "inet"), ""),
        "revoked vsock": "EKEYREVOKED",
    }
    wrong = [f"{name}: {made[name]!r}" for name in wanted if made[name] != wanted[name]]
    # The kernel's own answers: it has no such family, or no device for it.
    passed = ("", "EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPERM")
    wrong += [
        f"{name}: {made[name]!r}"
        for name in (
            "observed vsock",
            "observed network's vsock",
            "licensed vsock",
            "pppox by the host's network",
        )
        if made[name] not in passed
    ]
    kept = found["guard"]
    wrong += [
        f"{name} {when}: {answer!r}"
        for when in ("before it locks", "unlocked by itself")
        for name, answer in kept[when].items()
        if answer
    ]
    for name, answer in kept["while it lives"].items():
        if answer != ("" if name.endswith(": may") else "EPERM"):
            wrong.append(f"{name} while the daemon lives: {answer!r}")
    if not kept["told"]:
        wrong.append("no event tells of the attempts")
    wrong += [
        f"not {name}"
        for name in (
            "locked",
            "locked again",
            "without a lock in a namespace of its own",
            "unlocked by its death",
        )
        if not kept[name]
    ]
    if kept["detach after its death"]:
        wrong.append(f"detach after its death: {kept['detach after its death']}")
    return wrong
