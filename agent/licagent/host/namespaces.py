# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: which there are, and doing something inside one.

Socket listings and SOCK_DESTROY see one network namespace only, so a revocation has to visit
them all.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from licagent.host.mounts import MountTable
from licagent.host.processes import pids

_CLONE_NEWNET = 0x40000000
T = TypeVar("T")


class NamespaceError(OSError):
    """A namespace could not be entered."""


@dataclass(frozen=True, slots=True)
class NetNamespace:
    """A network namespace, kept alive by `fd` while the enumeration is open."""

    inode: int  # what `ls -l /proc/PID/ns/net` shows in brackets
    fd: int
    pid: int | None  # a process in it; None: only a mount or bind holds it (ip netns add)
    name: str | None  # its mount point, such as /run/netns/blue


@contextmanager
def network_namespaces() -> Iterator[tuple[NetNamespace, ...]]:
    """All network namespaces that have a process or a mount, each once, ours first.

    A namespace that lives only by a socket in another process's hands is not found: the
    kernel offers no list of them.
    """
    found: dict[int, NetNamespace] = {}
    try:
        _add(found, "/proc/self/ns/net", None, None)
        mounts = MountTable()
        try:
            for mount in mounts.of_filesystem("nsfs"):
                if mount.root.startswith("net:["):
                    _add(found, mount.point, None, mount.point)
        finally:
            mounts.close()
        for pid in pids():
            _add(found, f"/proc/{pid}/ns/net", pid, None)
        yield tuple(found.values())
    finally:
        for namespace in found.values():
            os.close(namespace.fd)


def _add(found: dict[int, NetNamespace], path: str, pid: int | None, name: str | None) -> None:
    try:
        inode = os.stat(path).st_ino  # noqa: PTH116  once a process; a Path doubles its cost
        held = found.get(inode)
        if held is not None:
            if (held.pid is None and pid is not None) or (held.name is None and name is not None):
                found[inode] = NetNamespace(
                    inode, held.fd, pid if held.pid is None else held.pid, held.name or name
                )
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # the process ended, or is not ours to look at
        return
    # The process may have moved between the two calls: the open file says what it is.
    inode = os.fstat(fd).st_ino
    if inode in found:
        os.close(fd)
        return
    found[inode] = NetNamespace(inode, fd, pid, name)


def run_inside(namespace_fd: int, action: Callable[[], T]) -> T:
    """Call `action` on a thread of its own inside a network namespace; its result or error.

    setns(2) moves one thread only, and the thread ends afterwards, so that nothing else of
    this process is ever in a strange namespace. Raises NamespaceError (needs CAP_SYS_ADMIN).
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def enter_and_act() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace_fd, _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise NamespaceError(
                    number,
                    f"cannot enter a network namespace: "
                    f"{os.strerror(number)}; CAP_SYS_ADMIN is needed",
                )
            results.append(action())
        except BaseException as error:  # noqa: BLE001  raised again by the caller's thread
            errors.append(error)

    thread = threading.Thread(target=enter_and_act, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
