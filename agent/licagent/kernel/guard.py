# SPDX-License-Identifier: Apache-2.0
"""The LSM side: is BPF among the kernel's security modules, and whose are our links and maps?

While the guard is locked, bpf/guard.bpf.c refuses other processes, also of root, what would take
enforcement away behind the daemon's back. It unlocks when the daemon ends, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from licagent.kernel import attach, bpf_info, libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import Guard, GuardedKey
from licagent.kernel.libbpf import BpfError
from licagent.kernel.maps import Map
from licagent.kernel.numbers import Guarded

_MODULES: Final = Path("/sys/kernel/security/lsm")
_ZERO: Final = bytes(4)
_ONE: Final = struct.pack("=I", 1)
_MINOR_BITS: Final = 20
"""Of the kernel's own device numbers, include/linux/kdev_t.h."""
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC
"""PROC_PID_INIT_INO, include/linux/proc_ns.h: where process ids are those that the kernel has."""
UNLOCKS: Final = "guard_exit"
"""The hook without which nothing is locked: it lets others in when the daemon is gone."""


def security_modules() -> tuple[str, ...] | None:
    """Names of the active security modules; None where securityfs is not mounted."""
    try:
        return tuple(_MODULES.read_text(encoding="ascii").strip().split(","))
    except OSError:
        return None


class GuardTables:
    """The maps `guard` and `guarded`. They are there where an LSM object was loaded."""

    def __init__(self, pins: PinFolder) -> None:
        self._pins = pins

    def exist(self) -> bool:
        """Whether an LSM object was loaded here."""
        return (self._pins.maps / "guard").exists() and (self._pins.maps / "guarded").exists()

    def read(self) -> Guard:
        """The guard's one element. Raises BpfError."""
        with closing(Map(self._pins.maps / "guard")) as table:
            return Guard.from_buffer_copy(table.lookup(_ZERO) or bytes(ctypes.sizeof(Guard)))

    def _write(self, guard: Guard) -> None:
        value = ctypes.string_at(ctypes.addressof(guard), ctypes.sizeof(guard))
        with closing(Map(self._pins.maps / "guard")) as table:
            table.update(_ZERO, value)

    def prepare(self) -> int:
        """Tell the programs of the host's namespaces, let each run once; the bits of those seen.

        A kernel attaches LSM programs also where "bpf" is not among its modules, and never calls
        them then. So this makes a socket and calls bpf(2), and looks who has noticed.
        """
        guard = self.read()
        guard.network_namespace = _namespace("net")
        guard.mount_namespace = _namespace("mnt")
        guard.seen = 0
        self._write(guard)
        socket.socket(socket.AF_UNIX).close()
        return int(self.read().seen)

    def lock(self) -> bool:
        """From now on only this process and its children change what is pinned; whether so.

        Call it again when something was pinned since: it protects what is there at the time. In a
        process namespace of its own the daemon does not know its number in the kernel, and locks
        nothing: by another number it would lock itself out, and its end would unlock nothing.
        """
        if _inode_of("pid", "self") != _FIRST_PID_NAMESPACE:
            return False
        if not self.exist() or not attach.link_is_live(self._pins.links / UNLOCKS, None):
            return False
        found = set(self._ours())
        with closing(Map(self._pins.maps / "guarded")) as table:
            held = set(table.keys())
            table.update_many((key, _ONE) for key in sorted(found - held))
            table.delete_many(sorted(held - found))
        guard = self.read()
        if guard.daemon != os.getpid() or not guard.locked:
            guard.daemon, guard.locked = os.getpid(), 1
            self._write(guard)
        return True

    def unlock(self) -> None:
        """From now on everybody may again do what root may. Raises BpfError."""
        if not self.exist():
            return
        guard = self.read()
        if guard.locked:
            guard.locked = 0
            self._write(guard)

    def take_refused(self) -> int:
        """Attempts that no event has told of, because they came in a flood; counted from now."""
        if not self.exist():
            return 0
        guard = self.read()
        count = int(guard.refused)
        if count:
            guard.refused = 0
            self._write(guard)
        return count

    def _ours(self) -> Iterator[bytes]:
        device = self._pins.root.stat().st_dev
        number = os.major(device) << _MINOR_BITS | os.minor(device)
        yield _key(Guarded.MOUNT, number, 0)
        folders = (self._pins.root, self._pins.maps, self._pins.links, self._pins.programs)
        for folder in folders:
            yield _key(Guarded.FOLDER, number, folder.stat().st_ino)
        for pin in self._pins.links.iterdir():
            with _opened(pin) as fd:
                if fd is not None:
                    link = bpf_info.link_info(fd)
                    yield _key(Guarded.LINK, 0, link.id)
                    yield _key(Guarded.PROGRAM, 0, link.program_id)
        for pin in self._pins.programs.iterdir():
            with _opened(pin) as fd:
                if fd is not None:
                    yield _key(Guarded.PROGRAM, 0, bpf_info.program_info(fd).id)
        for pin in self._pins.maps.iterdir():
            with _opened(pin) as fd:
                if fd is not None:
                    yield _key(Guarded.MAP, 0, bpf_info.map_info(fd).id)


@contextmanager
def _opened(pin: Path) -> Iterator[int | None]:
    """Its descriptor; None where it was taken away at this moment."""
    try:
        fd = libbpf.open_pin(pin)
    except BpfError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _key(kind: Guarded, device: int, number: int) -> bytes:
    key = GuardedKey(kind=int(kind), device=device, number=number)
    return ctypes.string_at(ctypes.addressof(key), ctypes.sizeof(key))


def _namespace(kind: str) -> int:
    """Number of the host's namespace: that of PID 1, since a service may have one of its own."""
    return _inode_of(kind, "1") or _inode_of(kind, "self")


def _inode_of(kind: str, owner: str) -> int:
    """Number of a process's namespace; 0 where /proc does not say."""
    try:
        return Path(f"/proc/{owner}/ns/{kind}").stat().st_ino & 0xFFFFFFFF
    except OSError:
        return 0
