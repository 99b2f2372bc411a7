# SPDX-License-Identifier: Apache-2.0
"""Running the pinned iterators: all sockets or all processes in one read."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, TypeVar

from licagent.kernel import libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import Event, SocketRecord
from licagent.kernel.maps import Map

_CHUNK: Final = 1 << 18
_LISTENING_WORDS: Final = 1024

Record = TypeVar("Record", bound=ctypes.Structure)


class Iterators:
    """The iterators of one pin folder. Those a kernel does not have answer with nothing."""

    def __init__(self, pins: PinFolder) -> None:
        self._links = pins.links
        self._listening = pins.maps / "listening"

    def has(self, name: str) -> bool:
        """Whether this kernel has the iterator."""
        return (self._links / name).exists()

    def seed_processes(self) -> list[Event]:
        """Identify processes that are not known yet; returns those never measured."""
        return _records(self._run("iter_task_seed"), Event)

    def clear_listeners(self) -> None:
        """Forget which ports are listened on."""
        if not self._listening.exists():
            return
        table = Map(self._listening)
        try:
            table.update_many(
                (struct.pack("=I", index), bytes(8)) for index in range(_LISTENING_WORDS)
            )
        finally:
            table.close()

    def note_listeners(self) -> None:
        """Note the listeners of the caller's network namespace."""
        self._run("iter_tcp_listen")

    def adopt(self) -> None:
        """Tag the sockets of all processes that carry no tag yet."""
        self._run("iter_task_file_adopt")

    def collect_usage(self) -> None:
        """Bring what live threads used so far into the open sheet."""
        self._run("iter_task_collect")

    def sockets(self) -> list[SocketRecord]:
        """Every socket of every process, with its holder and tag."""
        return _records(self._run("iter_task_file_list"), SocketRecord)

    def cut(self) -> list[SocketRecord]:
        """End the caller's network namespace's sockets whose tag no longer holds.

        A record with `destroyed` 0 was found but could not be ended here (no
        bpf_sock_destroy): netlink must.
        """
        found = _records(self._run("iter_tcp_cut"), SocketRecord)
        return found + _records(self._run("iter_udp_cut"), SocketRecord)

    def _run(self, name: str) -> bytes:
        pin = self._links / name
        if not pin.exists():
            return b""
        link = libbpf.open_pin(pin)
        try:
            fd = libbpf.iterator_fd(link)
        finally:
            os.close(link)
        parts = []
        try:
            while part := os.read(fd, _CHUNK):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts)


def _records(data: bytes, kind: type[Record]) -> list[Record]:
    size = ctypes.sizeof(kind)
    return [kind.from_buffer_copy(data, offset) for offset in range(0, len(data) - size + 1, size)]
