# SPDX-License-Identifier: Apache-2.0
"""Which device and inode a file is, without asking its filesystem.

stat(2) asks whoever serves a FUSE or network filesystem, and waits for the answer as long as that
one likes. statx(2) with AT_STATX_DONT_SYNC answers from what the kernel has.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from typing import Final

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_BASIC_STATS: Final = 0x7FF
_STATX_BYTES: Final = 256
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_MODE_AT: Final = 28  # stx_mode, then
_INODE_AT: Final = 32  # stx_ino, stx_dev_major and stx_dev_minor in struct statx
_DEVICE_AT: Final = 136

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class QuickStat:
    """What stat(2) would say, as far as the kernel knows it by itself."""

    major: int
    minor: int
    inode: int
    mode: int  # type and permissions, as st_mode


def quick_stat(file: int | str) -> QuickStat:
    """Of an open file, also O_PATH, or of a path, links followed. OSError as stat(2)."""
    if isinstance(file, int):
        return _statx(file, "", _AT_EMPTY_PATH)
    return _statx(_AT_FDCWD, file, 0)


def quick_stat_in(folder: int, name: str) -> QuickStat:
    """Of a name in an open folder, links not followed. OSError as stat(2)."""
    return _statx(folder, name, _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT)


def _statx(at: int, path: str, flags: int) -> QuickStat:
    found = ctypes.create_string_buffer(_STATX_BYTES)
    asked = (flags | _AT_STATX_DONT_SYNC, _STATX_BASIC_STATS)
    if _libc.statx(at, os.fsencode(path), *asked, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path or at)
    major, minor = struct.unpack_from("=II", found, _DEVICE_AT)
    (inode,) = struct.unpack_from("=Q", found, _INODE_AT)
    (mode,) = struct.unpack_from("=H", found, _MODE_AT)
    return QuickStat(major, minor, inode, mode)
