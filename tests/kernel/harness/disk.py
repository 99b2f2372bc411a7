# SPDX-License-Identifier: Apache-2.0
"""An ext4 of the test's own on a loop device, whose own counters are the reference."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

SECTOR: Final = 512
"""Of /sys/block/DEVICE/stat, whatever the device's own are (Documentation/block/stat.rst)."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes that a block device has read and written."""

    read: int
    written: int

    def __sub__(self, other: Moved) -> Moved:
        return Moved(self.read - other.read, self.written - other.written)


class Disk:
    """Mounted at `path`. Without a journal, whose thread would write besides."""

    def __init__(self, megabytes: int = 384) -> None:
        self._held = contextlib.ExitStack()
        self._size = megabytes << 20
        self.path = Path()
        self.device = ""

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._held.close()
            raise
        return self

    def _make(self) -> None:
        memory = Path("/dev/shm")
        folder = Path(
            tempfile.mkdtemp(prefix="licagent-disk-", dir=memory if memory.is_dir() else None)
        )
        self._held.callback(shutil.rmtree, folder, ignore_errors=True)
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(self._size)
        # Everything is written now: nothing is left for a thread of the kernel to do later.
        options = "lazy_itable_init=0,nodiscard"
        _run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", options, "-m", "0", str(image))
        done = subprocess.run(
            ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
        )
        loop = done.stdout.strip()
        self.device = Path(loop).name
        self._held.callback(_run, "losetup", "--detach", loop)
        self.path = folder / "mounted"
        self.path.mkdir(mode=0o755)
        _run("mount", "-o", "noatime,nodiscard", loop, str(self.path))
        self._held.callback(_run, "umount", str(self.path))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def moved(self) -> Moved:
        """What the device has done so far, with all that waited to be written."""
        _run("sync", "--file-system", str(self.path))
        words = Path(f"/sys/block/{self.device}/stat").read_text().split()
        return Moved(int(words[2]) * SECTOR, int(words[6]) * SECTOR)

    def file(self, name: str, size: int) -> Path:
        """A file of that size, written, and not in the page cache."""
        path = self.path / name
        with path.open("wb") as file:
            file.write(os.urandom(1 << 20) * (size >> 20))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return path


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
