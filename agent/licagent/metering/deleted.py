# SPDX-License-Identifier: Apache-2.0
"""Files without a name that still hold blocks, because a process has them open or mapped.

Found by the link count 0 of what /proc/PID/fd and /proc/PID/map_files lead to. The link's text
is looked at first, and only " (deleted)" is followed: stat(2) on a descriptor of a dead NFS
server would block for good, readlink(2) asks no filesystem.

Where the file was is told in the words of the process's own mount namespace. Its mount's root
turns that into a path inside of the filesystem, which is the same for everybody: so a file that a
container deleted under its own /data belongs to the host's folder that is mounted there.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.metering.ground import Place, inside_filesystem, is_below, mounts

_DELETED: Final = b" (deleted)"


@dataclass(frozen=True, slots=True)
class Deleted:
    """One deleted file that is still open or mapped."""

    device: int
    inode: int
    uid: int
    size_bytes: int
    """Blocks times 512."""
    path: bytes
    """Inside of its filesystem, without "(deleted)"; b"" where that could not be found out."""
    handle: str
    """A path below /proc that opens it, while its process lives."""


@dataclass(frozen=True, slots=True)
class FoundDeleted:
    """All of them, and what could not be looked at."""

    files: tuple[Deleted, ...]
    unreadable: int
    """Processes whose descriptors could not be read though they live."""


class _Views:
    """Mount namespaces: where a path that the kernel tells is inside of its filesystem.

    The text of a link begins at the reader's root where the file is in the reader's namespace,
    and at the namespace's root where it is in another; mountinfo begins at the process's root,
    and leaves out what is above it.
    """

    def __init__(self, proc: str) -> None:
        self._own_name = os.readlink(f"{proc}/self/ns/mnt")
        self._own = {place.mount_id: place for place in mounts(f"{proc}/self/mountinfo")}
        self._folder = ""
        self._places: dict[int, Place] = {}
        self._root = b""

    def enter(self, folder: str) -> None:
        """The files asked for next are a process's."""
        if folder == self._folder:
            return
        self._folder, self._places, self._root = folder, self._own, b""
        if os.readlink(f"{folder}/ns/mnt") != self._own_name:
            self._places = {place.mount_id: place for place in mounts(f"{folder}/mountinfo")}
            self._root = os.readlink(os.fsencode(f"{folder}/root")).rstrip(b"/")

    def inside(self, text: bytes, device: int, descriptor: str) -> bytes:
        """The path of an open or mapped file inside of its filesystem; b"" if it is not known."""
        found = b""
        mount = _mount_id(self._folder, descriptor) if descriptor else None
        if mount is None:
            # A mapping does not tell its mount: the longest one that it can be.
            found = _longest(text.removeprefix(self._root), device, self._places)
        elif mount in self._places:
            found = inside_filesystem(text.removeprefix(self._root), self._places[mount])
        # Of a changed root below another namespace's mount nobody tells. A namespace begins as a
        # copy, so the reader's own mounts are right as far as they fit.
        return found or _longest(text, device, self._own)


def find_deleted(devices: frozenset[int], proc: str = "/proc") -> FoundDeleted:
    """Deleted files on these devices (st_dev), each inode once."""
    found: dict[tuple[int, int], Deleted] = {}
    unreadable = 0
    views = _Views(proc)
    for entry in os.scandir(proc):
        if not entry.name.isdecimal():
            continue
        try:
            for deleted in _of_process(f"{proc}/{entry.name}", devices, found.keys(), views):
                found[deleted.device, deleted.inode] = deleted
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            unreadable += 1
    return FoundDeleted(tuple(found.values()), unreadable)


def _of_process(
    folder: str, devices: frozenset[int], known: Container[tuple[int, int]], views: _Views
) -> Iterator[Deleted]:
    links = [(f"{folder}/fd/{name}", name) for name in os.listdir(f"{folder}/fd")]
    links += [(f"{folder}/map_files/{name}", "") for name in _deleted_maps(folder)]
    for path, descriptor in links:
        try:
            text = os.readlink(os.fsencode(path))
            if not text.endswith(_DELETED) or not text.startswith(b"/"):
                continue
            status = Path(path).stat()
            if status.st_nlink or status.st_dev not in devices:
                continue
            if (status.st_dev, status.st_ino) in known:
                continue
            views.enter(folder)
            inside = views.inside(text.removesuffix(_DELETED), status.st_dev, descriptor)
        except OSError:
            continue  # closed in the meantime
        yield Deleted(
            status.st_dev,
            status.st_ino,
            status.st_uid,
            status.st_blocks * 512,
            inside,
            path,
        )


def _deleted_maps(folder: str) -> list[str]:
    """Ranges that map a deleted file, by the names they have in map_files."""
    try:
        with open(f"{folder}/maps", "rb") as file:
            content = file.read()
    except OSError:
        return []
    if _DELETED not in content:
        return []
    names = []
    for line in content.splitlines():
        if line.endswith(_DELETED):
            # maps pads addresses with zeros to eight digits, map_files does not.
            begin, _, end = line.split(b" ", 1)[0].partition(b"-")
            names.append(f"{int(begin, 16):x}-{int(end, 16):x}")
    return names


def _mount_id(folder: str, descriptor: str) -> int | None:
    with open(f"{folder}/fdinfo/{descriptor}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return None


def _longest(text: bytes, device: int, places: dict[int, Place]) -> bytes:
    fitting = [
        place for place in places.values() if place.device == device and is_below(text, place.point)
    ]
    if not fitting:
        return b""
    return inside_filesystem(text, max(fitting, key=lambda place: len(place.point)))
