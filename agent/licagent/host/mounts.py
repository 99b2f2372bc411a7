# SPDX-License-Identifier: Apache-2.0
"""The mount table as the kernel tells it (proc(5), /proc/PID/mountinfo)."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


def unescape(field: str) -> str:
    """Undo the kernel's escapes of blanks and backslashes (``\\040`` and the like)."""
    if "\\" not in field:
        return field
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), field)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    mount_id: int
    parent_id: int
    major: int  # of the superblock's s_dev, which is what the kernel's programs see
    minor: int
    root: str  # path inside the filesystem that stands at `point`
    point: str
    filesystem: str  # type, such as ext4 or fuse.sshfs
    source: str
    options: frozenset[str]  # of this mount
    super_options: frozenset[str]  # of the filesystem


def parse_mountinfo(text: str) -> Iterator[Mount]:
    """Yield the mounts of a mountinfo file; lines of another form are passed over."""
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields = head.split(" ")
        rest = tail.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            continue
        major, _, minor = fields[2].partition(":")
        try:
            yield Mount(
                mount_id=int(fields[0]),
                parent_id=int(fields[1]),
                major=int(major),
                minor=int(minor),
                root=unescape(fields[3]),
                point=unescape(fields[4]),
                filesystem=rest[0],
                source=unescape(rest[1]),
                options=frozenset(fields[5].split(",")),
                super_options=frozenset((rest[2] if len(rest) > 2 else "").split(",")),
            )
        except ValueError:
            continue


class MountTable:
    """The mounts of one process's namespace, read again only when they have changed.

    mountinfo signals POLLPRI when the table changes (proc(5), since 2.6.30), so that a look-up
    costs one poll(2) and never answers from an old table. For any thread.
    """

    def __init__(self, path: Path = Path("/proc/self/mountinfo")) -> None:
        """Open `path`; OSError where the process is gone or not ours to look at."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI | select.POLLERR)
        self._by_id: dict[int, Mount] = {}
        self._by_device: dict[tuple[int, int], tuple[Mount, ...]] = {}
        self._filled = False
        self._lock = threading.Lock()

    def _refresh(self) -> None:
        # One at a time: a change is told once, and whoever is not told it would answer from the
        # old table while the other still reads the new one.
        with self._lock:
            self._read_if_changed()

    def _read_if_changed(self) -> None:
        if self._filled and not self._poll.poll(0):
            return
        os.lseek(self._fd, 0, os.SEEK_SET)
        content = b""
        while chunk := os.read(self._fd, 1 << 16):
            content += chunk
        text = content.decode("utf-8", "surrogateescape")
        by_id: dict[int, Mount] = {}
        by_device: dict[tuple[int, int], tuple[Mount, ...]] = {}
        for mount in parse_mountinfo(text):
            by_id[mount.mount_id] = mount
            device = (mount.major, mount.minor)
            by_device[device] = (*by_device.get(device, ()), mount)
        self._by_id, self._by_device, self._filled = by_id, by_device, True

    def by_id(self, mount_id: int) -> Mount | None:
        """The mount with this id, or None where it is in another namespace."""
        self._refresh()
        return self._by_id.get(mount_id)

    def on_device(self, major: int, minor: int) -> tuple[Mount, ...]:
        """All mounts of one filesystem."""
        self._refresh()
        return self._by_device.get((major, minor), ())

    def of_filesystem(self, filesystem: str) -> tuple[Mount, ...]:
        """All mounts of one type."""
        self._refresh()
        return tuple(m for m in self._by_id.values() if m.filesystem == filesystem)

    def point_of(self, path: str) -> str:
        """Where the mount stands that an absolute path's text leads into; links are not followed.

        Asks no filesystem. "/" at the least.
        """
        self._refresh()
        points = {mount.point for mount in self._by_id.values()}
        while path and path not in points:
            path = path.rpartition("/")[0]
        return path or "/"

    def close(self) -> None:
        """Give the file descriptor back; otherwise it goes with the object."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()
