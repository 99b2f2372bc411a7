# SPDX-License-Identifier: Apache-2.0
"""The mounts that a walk meets: what it may enter, and where paths are inside of a filesystem."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

# Their files have no blocks, can be endless, and reading them can have effects.
_PSEUDO: Final = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts"),
        *("devtmpfs", "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore"),
        *("rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs"),
    )
)
# Not this host's storage, and they can hang.
_REMOTE: Final = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "afs", "virtiofs", "lustre")
# Files share blocks in the ordinary use of these, or the blocks are another filesystem's.
_SHARING: Final = frozenset({"btrfs", "bcachefs", "zfs", "overlay"})


@dataclass(frozen=True, slots=True)
class Place:
    """A mount, as mountinfo tells it."""

    mount_id: int
    device: int
    """As st_dev; another number than the files' own on btrfs."""
    root: bytes
    """Path inside of the filesystem that stands at `point`."""
    point: bytes
    filesystem: str

    @property
    def shares_blocks(self) -> bool:
        """Whether blocks x 512 of its files add up to more than it holds."""
        return self.filesystem in _SHARING

    @property
    def may_be_entered(self) -> bool:
        """Whether it is storage of this host."""
        return self.filesystem not in _PSEUDO and not self.filesystem.startswith(_REMOTE)


class Ground:
    """The mount table, as one walk sees it."""

    def __init__(self, places: Iterable[Place]) -> None:
        """Of several mounts at one point the last one hides the others."""
        self._by_point = {place.point.rstrip(b"/") or b"/": place for place in places}
        self._covered: dict[bytes, set[bytes]] = {}
        for point in self._by_point:
            folder, _, name = point.rpartition(b"/")
            self._covered.setdefault(folder or b"/", set()).add(name)

    def at(self, path: bytes) -> Place | None:
        """The mount that begins at `path`."""
        return self._by_point.get(path)

    def covered_in(self, folder: bytes) -> frozenset[bytes]:
        """Names in `folder` on which something is mounted."""
        return frozenset(self._covered.get(folder, ()))

    def around(self, path: bytes) -> Place | None:
        """The mount that `path` is on."""
        while path not in self._by_point and path != b"/":
            path = path.rpartition(b"/")[0] or b"/"
        return self._by_point.get(path)

    def below(self, path: bytes) -> Iterator[Place]:
        """The mounts that begin below `path`."""
        for point, place in self._by_point.items():
            if point != path and is_below(point, path):
                yield place


def inside_filesystem(path: bytes, place: Place) -> bytes:
    """Where `path`, below the mount's point, is within the filesystem; b"" if it is not below."""
    if not is_below(path, place.point):
        return b""
    rest = path[len(place.point.rstrip(b"/")) :].strip(b"/")
    return b"/" + b"/".join(part for part in (place.root.strip(b"/"), rest) if part)


def is_below(path: bytes, folder: bytes) -> bool:
    """Whether `path` is `folder` or in it."""
    folder = folder.rstrip(b"/")
    return path == folder or path.startswith(folder + b"/")


def mounts(path: str = "/proc/self/mountinfo") -> Iterator[Place]:
    """The mounts of a mountinfo file; lines of another form are passed over."""
    with open(path, "rb") as file:
        for line in file:
            head, separator, tail = line.partition(b" - ")
            fields = head.split(b" ")
            if not separator or len(fields) < 6:
                continue
            major, _, minor = fields[2].partition(b":")
            yield Place(
                int(fields[0]),
                os.makedev(int(major), int(minor)),
                _unescape(fields[3]),
                _unescape(fields[4]),
                tail.split(b" ", 1)[0].decode(errors="replace"),
            )


def _unescape(field: bytes) -> bytes:
    # The backslash's own escape is last: it may stand before digits that escape nothing.
    for code, sign in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, sign)
    return field
