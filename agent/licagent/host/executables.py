# SPDX-License-Identifier: Apache-2.0
"""Which file an executable is, in the kernel's own terms, and what its content is.

The kernel knows an executable by (device, inode, change time), read at exec from the inode; a
rename keeps all three, any write moves the change time. Userspace has to name files the same
way: `stat` tells another device on btrfs and other inodes on some overlays, so both numbers
are taken from /proc/self/fdinfo ("mnt_id", "ino": the inode's own number) and mountinfo (the
superblock's device).
"""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from licagent.host.hostroot import as_host_sees, real_path
from licagent.host.mounts import Mount, MountTable
from licagent.host.quickstat import quick_stat

_MINOR_BITS: Final = 20  # MKDEV() inside the kernel, include/linux/kdev_t.h


class NoSuchExecutable(LookupError):
    """A path at which no regular file can be opened."""

    def __init__(self, path: str, why: str) -> None:
        """`why` is the system's word for it."""
        super().__init__(
            f"{path} cannot be identified: {why}. Check the path, or name the file's content "
            "with unix:sha256 instead"
        )
        self.path = path
        self.why = why


@dataclass(frozen=True, slots=True, order=True)
class FileIdentity:
    """A version of a file, as the kernel's programs see it."""

    device: int  # the superblock's s_dev: major << 20 | minor
    inode: int  # i_ino
    ctime_ns: int  # change time, ns since 1970


@dataclass(frozen=True, slots=True, order=True)
class DirectoryEntry:
    """A name in a folder: what `unix:path` selectors become."""

    directory_device: int
    directory_inode: int
    name: str  # base name, without symbolic links on the way
    path: str = field(default="", compare=False)  # as the host has it, without links


def kernel_device(major: int, minor: int) -> int:
    """A device number as the kernel keeps it, which is not the one of stat(2)."""
    return major << _MINOR_BITS | minor


def device_numbers(device: int) -> tuple[int, int]:
    """Major and minor of a device number as the kernel keeps it."""
    return device >> _MINOR_BITS, device & ((1 << _MINOR_BITS) - 1)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """What is known of an open file: its identity and the mount it was opened through."""

    identity: FileIdentity
    mount: Mount | None  # None: in no mount namespace that we see (memfd, another container)
    info: os.stat_result


def device_of_fd(fd: int, mounts: MountTable) -> int:
    """The device of an open file, as the kernel keeps it, without asking its filesystem."""
    mount_id, _ = _fdinfo(fd)
    mount = mounts.by_id(mount_id) if mount_id is not None else None
    if mount is not None:
        return kernel_device(mount.major, mount.minor)
    found = quick_stat(fd)
    return kernel_device(found.major, found.minor)


def mount_id_of_fd(fd: int) -> int | None:
    """The mount that an open file was opened through, without asking its filesystem."""
    return _fdinfo(fd)[0]


def identify_fd(fd: int, mounts: MountTable) -> OpenFile:
    """Identify an open file, which may be O_PATH."""
    info = os.fstat(fd)
    mount_id, inode = _fdinfo(fd)
    mount = mounts.by_id(mount_id) if mount_id is not None else None
    if mount is not None:
        device = kernel_device(mount.major, mount.minor)
    else:
        device = kernel_device(os.major(info.st_dev), os.minor(info.st_dev))
    return OpenFile(
        FileIdentity(device, info.st_ino if inode is None else inode, info.st_ctime_ns),
        mount,
        info,
    )


def identify(path: str | Path, mounts: MountTable | None = None) -> FileIdentity:
    """The identity of the file at `path`, symbolic links followed.

    /proc/PID/exe works as well, also when the file is deleted or in a container.
    Raises NoSuchExecutable.
    """
    fd = _open_path(str(path), 0)
    try:
        found = identify_fd(fd, mounts if mounts is not None else _own_mounts())
    finally:
        os.close(fd)
    if not stat.S_ISREG(found.info.st_mode):
        raise NoSuchExecutable(str(path), "it is no regular file")
    return found.identity


def directory_entry(path: str | Path, mounts: MountTable | None = None) -> DirectoryEntry:
    """The folder and the name that a path stands for, symbolic links resolved.

    /usr/bin/python3 becomes the entry of python3.11 in /usr/bin, since that is what the
    kernel runs. The file itself need not exist (a package that is yet to come), its folder
    must. Bind mounts of folders change nothing, they show the same folder; a single file
    mounted over the path is known by the folder it comes from, and so does not match.
    Raises NoSuchExecutable.
    """
    try:
        resolved = real_path(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise NoSuchExecutable(str(path), why or "it cannot be resolved") from error
    directory, name = os.path.split(resolved)
    if not name:
        raise NoSuchExecutable(str(path), "it is a folder")
    fd = _open_path(directory, os.O_DIRECTORY)
    try:
        found = identify_fd(fd, mounts if mounts is not None else _own_mounts())
    finally:
        os.close(fd)
    return DirectoryEntry(found.identity.device, found.identity.inode, name, resolved)


@functools.cache
def _own_mounts() -> MountTable:
    return MountTable()


def _open_path(path: str, flags: int) -> int:
    try:
        return os.open(as_host_sees(path), os.O_PATH | os.O_CLOEXEC | flags)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise NoSuchExecutable(path, why or "it cannot be opened") from error


def _fdinfo(fd: int) -> tuple[int | None, int | None]:
    mount_id = inode = None
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file.read().splitlines():
            key, _, value = line.partition(b":")
            if key == b"mnt_id":
                mount_id = int(value)
            elif key == b"ino":  # since 5.14, commit 3845f256a8b5
                inode = int(value)
    return mount_id, inode
