# SPDX-License-Identifier: Apache-2.0
"""The filesystem's own count of what a user or a project id holds: quotactl(2) by ctypes.

A quota count has what no walk sees: files deleted but open, blocks reserved for delayed
allocation, and files in folders of other mounts. It is kept by the filesystem with each change,
so one call is exact and costs microseconds.

quotactl_fd(2) (Linux 5.14) names the filesystem by a descriptor; before that its block device is
needed, which a service with PrivateDevices= does not see.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

_Q_GETQUOTA: Final = 0x800007
_Q_GETNEXTQUOTA: Final = 0x800009  # Linux 4.6

# struct if_dqblk and if_nextdqblk, include/uapi/linux/quota.h
_DQBLK: Final = struct.Struct("=8QI4x")
_NEXT_DQBLK: Final = struct.Struct("=8QII")
_QIF_SPACE: Final = 1 << 1
_QIF_INODES: Final = 1 << 3

# _IOR('X', 31, struct fsxattr), include/uapi/linux/fs.h; on MIPS, PowerPC and SPARC the
# direction's bits stand elsewhere, and project ids are then not read.
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FSXATTR: Final = struct.Struct("=5I8x")
_ELSEWHERE: Final = ("mips", "ppc", "sparc", "alpha", "parisc")

_NR_QUOTACTL_FD: Final = 443  # the same on every architecture (since Linux 5.1 they all are)
_NR_QUOTACTL: Final = {"x86_64": 179, "aarch64": 60, "riscv64": 60, "s390x": 131, "ppc64le": 131}

_OFF: Final = frozenset(
    # ESRCH: quota is not on. ENOSYS, EOPNOTSUPP, EINVAL, ENOTTY: not in this kernel or
    # filesystem. ENOTBLK, ENODEV, ENOENT: no block device, or none that is visible.
    {
        errno.ESRCH,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EINVAL,
        errno.ENOTTY,
        errno.ENOTBLK,
        errno.ENODEV,
        errno.ENOENT,
    }
)


class QuotaType(IntEnum):
    """Whose quota (include/uapi/linux/quota.h)."""

    USER = 0
    PROJECT = 2


class QuotaOff(Exception):
    """This filesystem keeps no such count here; a walk has to do."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one id holds on a filesystem."""

    owner: int
    """User or project id."""
    size_bytes: int
    inodes: int


class FilesystemQuota:
    """Quota counts of the filesystem at one path."""

    def __init__(self, path: str) -> None:
        """Open `path`, a folder; OSError where that fails."""
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._by_device: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def of(self, kind: QuotaType, owner: int) -> Held:
        """What `owner` holds; zero for an id that never held anything.

        QuotaOff where the filesystem does not count; OSError with EPERM where the caller lacks
        CAP_SYS_ADMIN or the service's system call filter forbids the call.
        """
        buffer = ctypes.create_string_buffer(_DQBLK.size)
        self._call(_Q_GETQUOTA, kind, owner, buffer)
        fields = _DQBLK.unpack(buffer.raw)
        return _held(owner, fields[2], fields[5], fields[8])

    def every(self, kind: QuotaType) -> Iterator[Held]:
        """All ids that have an entry, in order, by Q_GETNEXTQUOTA."""
        owner = 0
        while True:
            buffer = ctypes.create_string_buffer(_NEXT_DQBLK.size)
            try:
                self._call(_Q_GETNEXTQUOTA, kind, owner, buffer)
            except QuotaOff:
                # ESRCH says "no more" as well as "off"; only a call for one id tells.
                self.of(kind, 0)
                return
            fields = _NEXT_DQBLK.unpack(buffer.raw)
            yield _held(fields[9], fields[2], fields[5], fields[8])
            owner = fields[9] + 1
            if owner > 0xFFFF_FFFE:
                return

    def _call(self, operation: int, kind: QuotaType, owner: int, buffer: object) -> None:
        command = (operation << 8) | kind
        if self._by_device is None:
            code = self._invoke(_NR_QUOTACTL_FD, self._fd, command, owner, buffer)
            if code == 0:
                return
            if code != errno.ENOSYS:
                _refuse(code, kind)
            self._by_device = _block_device(self._fd)
        number = _NR_QUOTACTL.get(platform.machine())
        if number is None:
            raise QuotaOff(f"quotactl(2) has no known number on {platform.machine()}")
        code = self._invoke(number, command, self._by_device, owner, buffer)
        if code:
            _refuse(code, kind)

    def _invoke(self, number: int, first: object, second: object, owner: int, at: object) -> int:
        def argument(value: object) -> object:
            return ctypes.c_long(value) if isinstance(value, int) else value

        done: int = self._libc.syscall(
            ctypes.c_long(number), argument(first), argument(second), ctypes.c_uint(owner), at
        )
        return ctypes.get_errno() if done else 0


def _held(owner: int, size_bytes: int, inodes: int, valid: int) -> Held:
    return Held(
        owner, size_bytes if valid & _QIF_SPACE else 0, inodes if valid & _QIF_INODES else 0
    )


def _refuse(code: int, kind: QuotaType) -> None:
    if code in _OFF:
        raise QuotaOff(f"{kind.name.lower()} quota is not on ({errno.errorcode[code]})")
    raise OSError(code, os.strerror(code))


def _block_device(fd: int) -> bytes:
    device = os.fstat(fd).st_dev
    try:
        name = os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    except OSError as error:
        raise QuotaOff("the filesystem is on no block device") from error
    return b"/dev/" + os.fsencode(os.path.basename(name))  # noqa: PTH119 -- a name, not a path


def project_of(fd: int) -> int:
    """Project id of an open file or folder; 0 where the filesystem has none."""
    if platform.machine().startswith(_ELSEWHERE):
        return 0
    buffer = bytearray(_FSXATTR.size)
    try:
        fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, buffer)
    except OSError:
        return 0
    project: int = _FSXATTR.unpack(buffer)[3]
    return project
