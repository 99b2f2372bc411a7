# SPDX-License-Identifier: Apache-2.0
"""The few file operations that the ledger makes, so that tests can fail each of them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol


class FileLayer(Protocol):
    """What the ledger does to the disk. Every method may raise OSError."""

    def make_folder(self, folder: Path) -> None:
        """Make it (mode 0700) if it is not there."""

    def names(self, folder: Path) -> list[str]:
        """Of the files in it, in any order."""

    def size(self, path: Path) -> int:
        """Bytes."""

    def read(self, path: Path, offset: int = 0, length: int = -1) -> bytes:
        """From `offset` on, `length` bytes or all (-1); fewer where the file ends before."""

    def create(self, path: Path) -> int:
        """A new file (mode 0600), open for writing; FileExistsError if there is one."""

    def open(self, path: Path) -> int:
        """A file that is there, for writing."""

    def write(self, handle: int, data: bytes, offset: int) -> int:
        """Write at an offset; how many bytes were taken, perhaps fewer than given."""

    def fsync(self, handle: int) -> None:
        """Content and size are on the disk when this returns."""

    def truncate(self, handle: int, size: int) -> None:
        """Cut off what is behind."""

    def close(self, handle: int) -> None:
        """Let go of it."""

    def rename(self, old: Path, new: Path) -> None:
        """In one step; `new` is replaced."""

    def unlink(self, path: Path) -> None:
        """Remove a file."""

    def fsync_folder(self, folder: Path) -> None:
        """Names that were made, changed and removed are so on the disk when this returns."""

    def lock(self, folder: Path) -> int:
        """Take the folder for this process; a handle to `close`. BlockingIOError if it is taken."""


class OsFiles:
    """The real ones."""

    def make_folder(self, folder: Path) -> None:
        """Make it (mode 0700) if it is not there, durably."""
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            return
        self.fsync_folder(folder.parent)

    def names(self, folder: Path) -> list[str]:
        """Of everything in it."""
        return os.listdir(folder)

    def size(self, path: Path) -> int:
        """Bytes."""
        return path.stat().st_size

    def read(self, path: Path, offset: int = 0, length: int = -1) -> bytes:
        """A part of it."""
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def create(self, path: Path) -> int:
        """A new file, mode 0600."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600)

    def open(self, path: Path) -> int:
        """For writing."""
        return os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def write(self, handle: int, data: bytes, offset: int) -> int:
        """pwrite(2)."""
        return os.pwrite(handle, data, offset)

    def fsync(self, handle: int) -> None:
        """fsync(2)."""
        os.fsync(handle)

    def truncate(self, handle: int, size: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(handle, size)

    def close(self, handle: int) -> None:
        """close(2)."""
        os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """rename(2)."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """unlink(2)."""
        path.unlink()

    def fsync_folder(self, folder: Path) -> None:
        """fsync(2) of the folder."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def lock(self, folder: Path) -> int:
        """flock(2) on the folder itself, which works on a read-only disk too."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(handle)
            raise
        return handle
