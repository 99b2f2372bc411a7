# SPDX-License-Identifier: Apache-2.0
"""Opening a path without asking any filesystem that somebody else serves.

A user decides what stands on the way to a file of theirs: a long chain of links, or a FUSE mount
that never answers a look-up. So a path is walked name by name; the mount table says what each step
stands on before anything is asked of it, and links are followed as often as the kernel would.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Final

from licagent.host.executables import mount_id_of_fd
from licagent.host.hostroot import HOST_ROOT, LINKS_MAX, as_host_sees
from licagent.host.mounts import MountTable
from licagent.host.quickstat import quick_stat

_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OF_PROCESS: Final = re.compile(r"/proc/(self|[0-9]+)/exe\Z", re.ASCII)
_FOREIGN_FILESYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "virtiofs", "vboxsf", "orangefs", "coda"}
)


class ForeignFilesystemError(Exception):
    """A path leads to a filesystem that somebody else serves."""

    def __init__(self, kind: str) -> None:
        """`kind` as the mount table has it."""
        super().__init__(f"it leads over {kind}, which somebody else serves")
        self.kind = kind


def is_foreign(kind: str) -> bool:
    """Whether somebody else decides what files of such a filesystem hold, and when it answers."""
    return kind.startswith("fuse") or kind in _FOREIGN_FILESYSTEMS


class Walker:
    """Opens files by their inode only (O_PATH). For any thread."""

    def __init__(self, own: MountTable, host: MountTable) -> None:
        """The mounts of this process's namespace, and those of the host's."""
        self._own = own
        self._host = host

    def open(self, path: str) -> int:
        """A descriptor (O_PATH) of what an absolute path stands for, links followed.

        /proc/PID/exe is what that process runs. Raises OSError (ELOOP after LINKS_MAX links),
        ValueError (a NUL byte), or ForeignFilesystemError.
        """
        if _OF_PROCESS.match(path):  # leads to an inode at once: no name is looked up
            return os.open(path, os.O_PATH | os.O_CLOEXEC)
        at, left = _start(path)
        links = 0
        try:
            mount_id = mount_id_of_fd(at)
            while left:
                name = left.pop()
                if name in ("", "."):
                    continue
                step = os.open(name, _STEP, dir_fd=at)
                try:
                    step_mount_id = mount_id_of_fd(step)
                    if step_mount_id != mount_id:
                        self._check(step, step_mount_id)
                    target = _target_of(step)
                    if target is None:
                        at, step, mount_id = step, at, step_mount_id
                        continue
                finally:
                    os.close(step)
                links += 1
                if links > LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if target.startswith("/"):
                    os.close(at)
                    at = -1
                    at, again = _start(target)
                    mount_id = mount_id_of_fd(at)
                    left += again
                else:
                    left += reversed(target.split("/"))
        except BaseException:
            if at >= 0:
                os.close(at)
            raise
        return at

    def _check(self, fd: int, mount_id: int | None) -> None:
        """Raise ForeignFilesystemError where a filesystem begins that is not to be asked."""
        mount = self._own.by_id(mount_id) if mount_id is not None else None
        if mount is None:  # of the host's namespace, where ours has another tree
            found = quick_stat(fd)
            mounts = self._host.on_device(found.major, found.minor)
            mount = mounts[0] if mounts else None
        # Nobody but the host's administrator decides what stands at its root.
        if mount is not None and mount.point != "/" and is_foreign(mount.filesystem):
            raise ForeignFilesystemError(mount.filesystem)


def _start(path: str) -> tuple[int, list[str]]:
    """A descriptor of the root that a path begins at, and its names, the first one last."""
    if not path.startswith("/"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    seen = as_host_sees(path)
    if seen == HOST_ROOT or seen.startswith(f"{HOST_ROOT}/"):
        root = os.open(HOST_ROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return root, seen.removeprefix(HOST_ROOT).split("/")[::-1]
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), seen.split("/")[::-1]


def _target_of(fd: int) -> str | None:
    """Where a symbolic link leads; None: it is none."""
    try:
        return os.readlink("", dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
