# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of executables, measured once per version of a file.

`unix:sha256` promises that nothing else runs under a license. The kernel compares (device,
inode, change time), so a digest may only be kept under an identity that no other content can
come to have. What could break that, and what is done about it:

- a write in the same clock tick as the last one: files younger than FRESH_NS are not measured;
- a writer beside us, by write(2) or a writable mapping: a read lease (fcntl(2), F_SETLEASE)
  is held while reading; the kernel refuses it when anybody has the file open for writing;
- a filesystem whose inodes, times or content somebody else makes up (FUSE, network
  filesystems): not measured;
- a filesystem mounted by a user in a namespace of their own, with a device number that is used
  again: only filesystems mounted in the host's own mount namespace are measured;
- tmpfs, where a shared mapping may be written without moving the change time: measured only if
  root alone can write the file;
- overlayfs, whose inode (the one that is compared) copies the change time of the file below
  only now and then, not at a write through a mapping (ovl_mmap(), fs/overlayfs/file.c; taken
  from the source, not yet shown by a test): measured only if it has no upper layer, or is the
  host's own root and root alone can write the file. In a container its own root could, so
  `container:id` is for those;
- another disk under the same device number, a disk changed while the host was off: digests
  are kept for one boot only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.host.executables import (
    FileIdentity,
    NoSuchExecutable,
    OpenFile,
    device_numbers,
    identify_fd,
)
from licagent.host.mounts import MountTable

FRESH_NS: Final = 20_000_000
"""Two ticks at HZ=100, the coarsest change time there is (current_time(), fs/inode.c)."""

FILE_MAX_BYTES: Final = 2 * 1024**3
_CHUNK_BYTES: Final = 1024 * 1024
_FORMAT: Final = "licagent.digests/1"
_MEMORY_FILESYSTEMS: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
_HOST_OVERLAYS: Final = frozenset({"/", "/usr"})
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_FOREIGN_FILESYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "virtiofs", "vboxsf", "orangefs", "coda"}
)


class NotMeasured(Exception):
    """No digest was taken. `retry` says whether it may work in a moment."""

    def __init__(self, path: str, why: str, *, retry: bool) -> None:
        """`why` is for people."""
        super().__init__(f"{path} was not measured: {why}")
        self.path = path
        self.why = why
        self.retry = retry


@dataclass(frozen=True, slots=True)
class Measured:
    """A file's version and its content."""

    identity: FileIdentity
    sha256: str  # lower-case hex
    size_bytes: int


class DigestCache:
    """Digests of this boot's executables, kept in a file so that a restart is quick."""

    def __init__(self, path: Path, boot_id: str, max_entries: int = 65536) -> None:
        """Load `path` if it is whole and of this boot; else begin anew: it is only a cache."""
        self._path = path
        self._boot_id = boot_id
        self._max_entries = max_entries
        self._digests: dict[FileIdentity, tuple[str, int]] = {}
        self._dirty = False
        self._own_mounts = MountTable()
        self._host_mounts = _host_mounts()
        self._watched_mounts = _host_mounts()
        self._load()

    def __len__(self) -> int:
        """How many versions of files are known."""
        return len(self._digests)

    def get(self, identity: FileIdentity) -> str | None:
        """The digest of a version of a file, if it is known."""
        found = self._digests.get(identity)
        return found[0] if found is not None else None

    def items(self) -> Iterator[tuple[FileIdentity, str]]:
        """All that is known, oldest first."""
        return ((identity, found[0]) for identity, found in list(self._digests.items()))

    def forget(self, identity: FileIdentity) -> None:
        """Drop one."""
        self._dirty = self._digests.pop(identity, None) is not None or self._dirty

    def mounts_changed_fd(self) -> int:
        """A descriptor that signals EPOLLPRI, once, when something was mounted or unmounted.

        Register it for EPOLLPRI alone (asyncio's add_reader would spin) and call
        `forget_unmounted` then.
        """
        return self._watched_mounts.fileno()

    def forget_unmounted(self) -> tuple[FileIdentity, ...]:
        """Drop, and return, the files whose filesystem is no longer mounted on this host.

        Their device number may be given to a filesystem that a user makes up (FUSE in a user
        namespace): take them out of the kernel's tables at once.
        """
        gone = tuple(
            identity
            for identity in self._digests
            if not self._host_mounts.on_device(*device_numbers(identity.device))
        )
        for identity in gone:
            self.forget(identity)
        return gone

    def measure(self, path: str | Path) -> Measured:
        """The digest of the file at `path`, from the cache if its version is known.

        Reading is not quick (1,147 cached files of 818 MiB took 2.3 s): call it where nothing
        waits, not on the event loop. Raises NoSuchExecutable or NotMeasured.
        """
        name = str(path)
        fd = _open(name)
        try:
            before = identify_fd(fd, self._own_mounts)
            self._check_filesystem(name, before)
            known = self._digests.get(before.identity)
            if known is not None:
                return Measured(before.identity, *known)
            _check_file(name, before.info)
            digest, size_bytes = _hash_under_lease(name, fd)
            after = identify_fd(fd, self._own_mounts)
        finally:
            os.close(fd)
        if after.identity != before.identity or after.info.st_size != size_bytes:
            raise NotMeasured(name, "it changed while it was read", retry=True)
        while len(self._digests) >= self._max_entries:
            del self._digests[next(iter(self._digests))]
        self._digests[before.identity] = (digest, size_bytes)
        self._dirty = True
        return Measured(before.identity, digest, size_bytes)

    def save(self) -> bool:
        """Write the cache if it has changed; whether it had. OSError when the disk refuses."""
        if not self._dirty:
            return False
        entries = [
            [identity.device, identity.inode, identity.ctime_ns, digest, size_bytes]
            for identity, (digest, size_bytes) in self._digests.items()
        ]
        body = json.dumps(entries, separators=(",", ":"))
        checksum = hashlib.sha256(body.encode()).hexdigest()
        head = json.dumps({"format": _FORMAT, "boot_id": self._boot_id, "sha256": checksum})
        fd, temporary = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(f"{head}\n{body}\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).rename(self._path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._dirty = False
        return True

    def _load(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(file.fileno())
            # Whoever can write this file decides which program has which digest.
            if info.st_uid != os.geteuid() or info.st_mode & 0o022:
                return
            head, _, body = file.read().partition(b"\n")
        try:
            header = json.loads(head)
            checksum = hashlib.sha256(body.removesuffix(b"\n")).hexdigest()
            if (header["format"], header["boot_id"], header["sha256"]) != (
                _FORMAT,
                self._boot_id,
                checksum,
            ):
                return
            for device, inode, ctime_ns, digest, size_bytes in json.loads(body):
                self._digests[FileIdentity(device, inode, ctime_ns)] = (digest, size_bytes)
        except (ValueError, KeyError, TypeError):
            self._digests.clear()

    def _check_filesystem(self, path: str, file: OpenFile) -> None:
        if not stat.S_ISREG(file.info.st_mode):
            raise NoSuchExecutable(path, "it is no regular file")
        mounts = self._host_mounts.on_device(*device_numbers(file.identity.device))
        if not mounts:
            raise NotMeasured(
                path, "its filesystem is not mounted in the host's own namespace", retry=False
            )
        kind = mounts[0].filesystem
        if kind.startswith("fuse") or kind in _FOREIGN_FILESYSTEMS:
            raise NotMeasured(
                path, f"others decide what a file on {kind} holds; copy it to a disk", retry=False
            )
        lagging = kind in _MEMORY_FILESYSTEMS
        if kind == "overlay" and any(o.startswith("upperdir") for o in mounts[0].super_options):
            if not any(mount.point in _HOST_OVERLAYS for mount in mounts):
                raise NotMeasured(
                    path,
                    "in a container's writable overlay it could be changed unseen; select the "
                    "container with container:id",
                    retry=False,
                )
            lagging = True
        if lagging and (file.info.st_uid != 0 or file.info.st_mode & _OTHERS_WRITE):
            raise NotMeasured(
                path,
                f"on {kind} its owner could change it unseen; install it on a disk, or as "
                "root's with mode 0755",
                retry=False,
            )


def _check_file(path: str, info: os.stat_result) -> None:
    if info.st_size > FILE_MAX_BYTES:
        raise NotMeasured(path, f"it is larger than {FILE_MAX_BYTES} bytes", retry=False)
    if 0 <= time.time_ns() - info.st_ctime_ns < FRESH_NS:
        raise NotMeasured(path, "it was changed a moment ago", retry=True)


def _host_mounts() -> MountTable:
    try:
        return MountTable(Path("/proc/1/mountinfo"))
    except OSError:  # a pid namespace of our own, or a first process that is not to be read
        return MountTable()


def _open(path: str) -> int:
    try:
        # O_NONBLOCK: a FIFO or a device at this path must not stop us.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise NoSuchExecutable(path, why or "it cannot be opened") from error


def _hash_under_lease(path: str, fd: int) -> tuple[str, int]:
    # A broken lease is announced by SIGIO, which would end the process: ask for SIGURG, which
    # is ignored unless somebody handles it.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise NotMeasured(path, "somebody has it open for writing", retry=True) from error
        raise NotMeasured(
            path, f"its filesystem cannot hold off writers ({error.strerror})", retry=False
        ) from error
    hasher = hashlib.sha256()
    size_bytes = 0
    try:
        while chunk := os.pread(fd, _CHUNK_BYTES, size_bytes):
            hasher.update(chunk)
            size_bytes += len(chunk)
            # Somebody waits to write: let them, and come back later.
            if fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                raise NotMeasured(path, "somebody opened it for writing", retry=True)
    except OSError as error:
        raise NotMeasured(path, f"it cannot be read ({error.strerror})", retry=False) from error
    finally:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return hasher.hexdigest(), size_bytes
