# SPDX-License-Identifier: Apache-2.0
"""Reading a file under a read lease, slice by slice.

The lease (fcntl(2), F_SETLEASE) keeps writers out while a file is read. For a file of another
owner it takes CAP_LEASE. When somebody wants to write, the kernel holds that one off
(/proc/sys/fs/lease-break-time) and tells the holder by a signal, to the process as a whole, not
to the thread that took the lease (lease_setup(), fs/locks.c: PIDTYPE_TGID). So no signal is
waited for: the lease itself is asked after each chunk, which any thread can.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
from typing import Final

_CHUNK_BYTES: Final = 1024 * 1024
_DROP_CACHE_FROM_BYTES: Final = 64 * 1024 * 1024
"""Larger files are not left in memory once read: they would push out what is used."""


class NotMeasured(Exception):
    """No digest was taken. `retry` says whether it may work in a moment."""

    def __init__(self, path: str, why: str, *, retry: bool) -> None:
        """`why` is for people."""
        super().__init__(f"{path} was not measured: {why}")
        self.path = path
        self.why = why
        self.retry = retry


class Reading:
    """A file that is being digested. Close it in any case: a writer may be waiting."""

    def __init__(self, path: str, fd: int) -> None:
        """Take `fd`, open for reading, with its lease.

        `path` is for messages. Raises NotMeasured, and closes `fd` then.
        """
        self.path = path
        self.fd = fd
        self.size_bytes = 0
        """Read so far."""
        self._hasher = hashlib.sha256()
        try:
            _take_lease(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def step(self, most_bytes: int) -> bool:
        """Read about `most_bytes` more; True at the end of the file. Raises NotMeasured."""
        end = self.size_bytes + most_bytes
        while self.size_bytes < end:
            try:
                chunk = os.pread(self.fd, _CHUNK_BYTES, self.size_bytes)
                held = fcntl.fcntl(self.fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
            except OSError as error:
                raise NotMeasured(
                    self.path, f"it cannot be read ({error.strerror})", retry=False
                ) from error
            # Somebody waits to write: let them, and come back later.
            if not held:
                raise NotMeasured(self.path, "somebody opened it for writing", retry=True)
            if not chunk:
                return True
            self._hasher.update(chunk)
            self.size_bytes += len(chunk)
        return False

    def is_wanted_by_a_writer(self) -> bool:
        """Whether somebody waits to write: give the file up then."""
        return fcntl.fcntl(self.fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def release(self) -> str:
        """Let writers in again; the digest of what was read, lower-case hex."""
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return self._hasher.hexdigest()

    def close(self) -> None:
        """Give lease and descriptor back. May be called again."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):
            if self.size_bytes >= _DROP_CACHE_FROM_BYTES:
                os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with contextlib.suppress(OSError):  # the lease goes with the descriptor as well
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self.fd)
        self.fd = -1


def _take_lease(path: str, fd: int) -> None:
    try:
        # A broken lease is announced by SIGIO, which would end the process: ask for SIGURG, which
        # is ignored unless somebody handles it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise NotMeasured(path, "somebody has it open for writing", retry=True) from error
        why = f"its filesystem cannot hold off writers ({error.strerror})"
        if error.errno == errno.EACCES:
            why = "to hold off writers of another owner's file takes CAP_LEASE"
        raise NotMeasured(path, why, retry=False) from error
