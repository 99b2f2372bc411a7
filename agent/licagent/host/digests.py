# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of executables, measured once per version of a file.

`unix:sha256` promises that nothing else runs under a license. The kernel compares (device,
inode, change time), so a digest may only be kept under an identity that no other content can
come to have. What could break that, and what is done about it, beside what is not measured at
all (licagent.host.measurable):

- a writer beside us, by write(2) or a writable mapping: a read lease (fcntl(2), F_SETLEASE)
  is held while reading; the kernel refuses it when anybody has the file open for writing;
- another disk under the same device number, a disk changed while the host was off: digests
  are kept for one boot only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.host import digest_file
from licagent.host.digest_file import Known
from licagent.host.executables import (
    FileIdentity,
    NoSuchExecutable,
    device_numbers,
    identify_fd,
)
from licagent.host.hashing import NotMeasured, Reading
from licagent.host.measurable import FILE_MAX_BYTES, Found, MeasurableFiles, check_file
from licagent.host.mounts import MountTable
from licagent.host.walk import is_foreign

_CHANGED: Final = "it changed while it was read"


@dataclass(frozen=True, slots=True)
class Measured:
    """A file's version and its content."""

    identity: FileIdentity
    sha256: str  # lower-case hex
    size_bytes: int


class DigestCache:
    """Digests of this boot's executables, kept in a file so that a restart is quick.

    For any thread; `save` for one at a time.
    """

    def __init__(self, path: Path, boot_id: str, max_entries: int = 65536) -> None:
        """Load `path` if it is whole and of this boot; else begin anew: it is only a cache."""
        self._path = path
        self._boot_id = boot_id
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._digests: dict[FileIdentity, Known] = {}
        self._by_owner: dict[int, dict[FileIdentity, None]] = {}  # oldest first
        self._evicted: list[FileIdentity] = []
        self._mounted: dict[int, tuple[str, str]] = {}  # device -> what was mounted, as known last
        self._dirty = False
        self._own_mounts = MountTable()
        self._host_mounts = _host_mounts()
        self.files = MeasurableFiles(self._own_mounts, self._host_mounts)
        """Where files are found that may be measured."""
        for identity, each in digest_file.read(path, boot_id):
            self._keep(identity, each)
        self._dirty = False
        # Unmounted since they were written down; a kernel's table may know them still.
        self._evicted += self.forget_unmounted()

    def __len__(self) -> int:
        """How many versions of files are known."""
        return len(self._digests)

    def get(self, identity: FileIdentity) -> str | None:
        """The digest of a version of a file, if it is known."""
        known = self._digests.get(identity)
        return known.sha256 if known is not None else None

    def items(self) -> Iterator[tuple[FileIdentity, str]]:
        """All that is known, oldest first."""
        with self._lock:
            known = list(self._digests.items())
        return ((identity, each.sha256) for identity, each in known)

    def forget(self, identity: FileIdentity) -> None:
        """Drop one."""
        with self._lock:
            self._drop(identity)

    def take_evicted(self) -> list[FileIdentity]:
        """What had to make room since the last call: take it out of the kernel's tables, too."""
        with self._lock:
            taken, self._evicted = self._evicted, []
        return taken

    def forget_unmounted(self) -> tuple[FileIdentity, ...]:
        """Drop, and return, the files whose filesystem is no longer mounted on this host.

        Their device number may be given to a filesystem that a user makes up (FUSE), or have been
        already: take them out of the kernel's tables at once.
        """
        with self._lock:
            devices = {at.device for at in self._digests}
            gone_devices = {device for device in devices if self._is_other(device)}
            gone = tuple(at for at in self._digests if at.device in gone_devices)
            for identity in gone:
                self._drop(identity)
        return gone

    def _is_other(self, device: int) -> bool:
        """Whether nothing is mounted by this number any more, or another filesystem."""
        now = self._mounted_as(device)
        if now is None:
            self._mounted.pop(device, None)
            return True
        before = self._mounted.get(device, now)
        self._mounted[device] = now
        # What somebody else serves was never measured: the number was another one's before.
        return now != before or is_foreign(now[0])

    def _mounted_as(self, device: int) -> tuple[str, str] | None:
        """Type and source of what is mounted on the host by this number."""
        mounts = self._host_mounts.on_device(*device_numbers(device))
        return (mounts[0].filesystem, mounts[0].source) if mounts else None

    def known(self, found: Found) -> Measured | None:
        """What is known of this version of the file."""
        known = self._digests.get(found.identity)
        return Measured(found.identity, known.sha256, known.size_bytes) if known else None

    def is_settled(self, path: str | Path) -> bool:
        """Whether there is nothing to read: the file is known, or none that may be measured."""
        try:
            found = self.files.find(path)
        except (NoSuchExecutable, NotMeasured, OSError):
            return True
        found.close()
        return found.identity in self._digests

    def begin(self, found: Found) -> Reading:
        """Begin to read it; `found` stays the caller's. Raises NoSuchExecutable or NotMeasured."""
        check_file(found)
        # The same inode, whatever its path names by now.
        return Reading(found.path, _open(f"/proc/self/fd/{found.fd}", os.O_RDONLY, found.path))

    @staticmethod
    def check_unchanged(found: Found) -> None:
        """Raise NotMeasured where reading on is in vain; `finish` is what counts."""
        if os.fstat(found.fd).st_ctime_ns != found.identity.ctime_ns:
            raise NotMeasured(found.path, _CHANGED, retry=True)

    def finish(self, found: Found, reading: Reading) -> Measured:
        """Keep the digest of what was read to its end. Raises NotMeasured."""
        sha256, size_bytes = reading.release(), reading.size_bytes
        after = identify_fd(reading.fd, self._own_mounts)
        if after.identity != found.identity or after.info.st_size != size_bytes:
            raise NotMeasured(found.path, _CHANGED, retry=True)
        with self._lock:
            # While it is open, its device number is nobody else's, mounted or not: kept is only
            # what `forget_unmounted` will find when that changes.
            device = found.identity.device
            mounts = self._host_mounts.on_device(*device_numbers(device))
            if found.filesystem not in {(each.filesystem, each.source) for each in mounts}:
                raise NotMeasured(found.path, "its filesystem was unmounted", retry=False)
            self._mounted[device] = (mounts[0].filesystem, mounts[0].source)
            while len(self._digests) >= self._max_entries:
                # Of whoever has most: nobody pushes out what others run.
                most = max(self._by_owner.values(), key=len)
                oldest = next(iter(most))
                self._drop(oldest)
                self._evicted.append(oldest)
            self._keep(found.identity, Known(sha256, size_bytes, found.owner))
            self._dirty = True
        return Measured(found.identity, sha256, size_bytes)

    def measure(self, path: str | Path) -> Measured:
        """The digest of the file at `path`, from the cache if its version is known.

        Reading is not quick (1,147 cached files of 818 MiB took 2.3 s), and as slow as its owner
        makes it: licagent.host.measurer is for files of anybody. Raises NoSuchExecutable or
        NotMeasured.
        """
        found = self.files.find(path)
        try:
            known = self.known(found)
            if known is not None:
                return known
            reading = self.begin(found)
            try:
                while not reading.step(FILE_MAX_BYTES):
                    pass
                return self.finish(found, reading)
            finally:
                reading.close()
        finally:
            found.close()

    def _keep(self, identity: FileIdentity, known: Known) -> None:
        self._drop(identity)
        self._digests[identity] = known
        self._by_owner.setdefault(known.owner, {})[identity] = None

    def _drop(self, identity: FileIdentity) -> None:
        known = self._digests.pop(identity, None)
        if known is None:
            return
        self._dirty = True
        of_owner = self._by_owner[known.owner]
        del of_owner[identity]
        if not of_owner:
            del self._by_owner[known.owner]

    def save(self) -> bool:
        """Write the cache if it has changed; whether it had. OSError when the disk refuses."""
        with self._lock:
            if not self._dirty:
                return False
            known = list(self._digests.items())
            self._dirty = False
        try:
            digest_file.write(self._path, self._boot_id, known)
        except BaseException:
            self._dirty = True
            raise
        return True


def _host_mounts() -> MountTable:
    try:
        return MountTable(Path("/proc/1/mountinfo"))
    except OSError:  # a pid namespace of our own, or a first process that is not to be read
        return MountTable()


def _open(path: str, how: int = os.O_PATH, name: str = "") -> int:
    try:
        return os.open(path, how | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise NoSuchExecutable(name or path, why or "it cannot be opened") from error
