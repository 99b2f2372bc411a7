# SPDX-License-Identifier: Apache-2.0
"""Tables by which the kernel knows executables and cgroups."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from licagent.kernel import libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import (
    Cgroup,
    Content,
    ContentKey,
    PathKey,
    Process,
    ScopeKey,
)
from licagent.kernel.maps import Map
from licagent.kernel.numbers import MAX_SCOPES, NAME_LEN, SCOPE_NAME_LEN

_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")


def _bytes(structure: ctypes.Structure) -> bytes:
    return ctypes.string_at(ctypes.addressof(structure), ctypes.sizeof(structure))


def path_key(device: int, inode: int, name: str) -> bytes:
    """Key of a directory entry.

    Raises:
        ValueError: the name is longer than the kernel compares (62 bytes).
    """
    encoded = name.encode()
    # The kernel cuts longer names at NAME_LEN - 1: a key of that length would match them.
    if len(encoded) >= NAME_LEN - 1:
        raise ValueError(f"{name!r}: names of executables are at most {NAME_LEN - 2} bytes long")
    return _bytes(PathKey(device=device, inode=inode, name=encoded))


def scope_key(kind: int, name: str) -> bytes:
    """Key of a cgroup's name.

    Raises:
        ValueError: longer than 250 bytes.
    """
    encoded = name.encode()
    # As above: what the kernel cuts must match nothing.
    if len(encoded) >= SCOPE_NAME_LEN - 1:
        raise ValueError(f"{name!r}: cgroup names are at most {SCOPE_NAME_LEN - 2} bytes long")
    return _bytes(ScopeKey(kind=kind, name=encoded))


class IdentityTables:
    """`paths`, `contents`, `scope_names`, `cgroups` and `processes`."""

    def __init__(self, pins: PinFolder) -> None:
        self._paths = Map(pins.maps / "paths")
        self._contents = Map(pins.maps / "contents")
        self._scope_names = Map(pins.maps / "scope_names")
        self._cgroups = Map(pins.maps / "cgroups")
        self._processes = Map(pins.maps / "processes")
        self.full: set[str] = set()

    def _put(self, table: Map, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Write what users can make without end (files, cgroups): a full table is no error.

        What does not fit is unknown, and so refused; `full` says which table it was.
        """
        try:
            table.update_many(items)
        except libbpf.BpfError as error:
            if error.errno != errno.E2BIG:
                raise
            self.full.add(table.path.name)

    def set_paths(self, entries: Mapping[bytes, int], *, prune: bool) -> None:
        """Directory entry -> path number; with `prune`, nothing else stays."""
        _set(self._paths, entries, prune=prune)

    def set_scope_names(self, entries: Mapping[bytes, int], *, prune: bool) -> None:
        """Cgroup name -> scope number; with `prune`, nothing else stays."""
        _set(self._scope_names, entries, prune=prune)

    def set_contents(self, entries: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Say which digests files' contents have.

        Each is (device, inode, ctime_ns, number, from_ns): 0 for a digest that no selector names,
        and the CLOCK_BOOTTIME from which on execs of the version had this content.
        """
        self._put(
            self._contents,
            (
                (
                    _bytes(ContentKey(device=device, inode=inode, ctime_ns=ctime)),
                    _bytes(Content(number=number, from_ns=from_ns)),
                )
                for device, inode, ctime, number, from_ns in entries
            ),
        )

    def forget_content(self, device: int, inode: int, ctime_ns: int) -> None:
        """A file's content is unknown again."""
        self._contents.delete(_bytes(ContentKey(device=device, inode=inode, ctime_ns=ctime_ns)))

    @property
    def is_full_of_contents(self) -> bool:
        """Whether a file's content did not fit."""
        return self._contents.path.name in self.full

    def drop_contents_but(self, entries: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Make room: all contents are unknown again but these, given as for `set_contents`."""
        kept = {
            _bytes(ContentKey(device=device, inode=inode, ctime_ns=ctime))
            for device, inode, ctime, _number, _from_ns in entries
        }
        self._contents.delete_many([key for key in self._contents.keys() if key not in kept])  # noqa: SIM118
        self.full.discard(self._contents.path.name)

    def clear_contents(self) -> None:
        """All contents are unknown again."""
        self._contents.delete_many(list(self._contents.keys()))

    def set_cgroup(self, cgroup_id: int, scopes: tuple[int, ...]) -> None:
        """Scopes of a cgroup and its ancestors, deepest first; none removes the entry."""
        key = _U64.pack(cgroup_id)
        if not scopes:
            self._cgroups.delete(key)
            return
        entry = Cgroup(count=min(len(scopes), MAX_SCOPES))
        for index, scope in enumerate(scopes[:MAX_SCOPES]):
            entry.scopes[index] = scope
        self._put(self._cgroups, [(key, _bytes(entry))])

    def cgroup(self, cgroup_id: int) -> tuple[int, ...]:
        """Scopes that the kernel holds for a cgroup."""
        value = self._cgroups.lookup(_U64.pack(cgroup_id))
        if value is None:
            return ()
        entry = Cgroup.from_buffer_copy(value)
        return tuple(entry.scopes[: entry.count])

    def cgroup_ids(self) -> tuple[int, ...]:
        """Cgroups that have an entry."""
        return tuple(_U64.unpack(key)[0] for key in self._cgroups.keys())  # noqa: SIM118

    def process(self, pid: int) -> Process | None:
        """What the kernel holds for a process. To be read only: it may execute another now."""
        value = self._processes.lookup(_U32.pack(pid))
        return None if value is None else Process.from_buffer_copy(value)

    def close(self) -> None:
        """Close the maps."""
        for table in (
            self._paths,
            self._contents,
            self._scope_names,
            self._cgroups,
            self._processes,
        ):
            table.close()


def _set(table: Map, entries: Mapping[bytes, int], *, prune: bool) -> None:
    table.update_many((key, _U32.pack(number)) for key, number in entries.items())
    if prune:
        table.delete_many([key for key in table.keys() if key not in entries])  # noqa: SIM118
