# SPDX-License-Identifier: Apache-2.0
"""The agent's folder in the BPF file system: where maps and links outlive the daemon."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.kernel.layout import SCHEMA

BPF_FS_MAGIC: Final = 0xCAFE4A11
"""include/uapi/linux/magic.h."""

_ASK_AGAIN_S: Final = 0.05
_MNT_DETACH: Final = 2  # umount2(2)

_MADE_BY_KERNEL: Final = frozenset({"maps.debug", "progs.debug"})
"""Files that every BPF file system has from the start (populate_bpffs)."""

_DEFAULT_MOUNT: Final = Path("/sys/fs/bpf")

_PRELOADED: Final = frozenset({"maps.debug", "progs.debug"})
"""What the kernel itself pins in every new mount (kernel/bpf/preload, CONFIG_BPF_PRELOAD)."""


class _StatFs(ctypes.Structure):
    _fields_ = [("f_type", ctypes.c_long), ("_rest", ctypes.c_byte * 256)]


def is_bpffs(path: Path) -> bool:
    """Whether `path` lies on a BPF file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = _StatFs()
    if libc.statfs(os.fsencode(path), ctypes.byref(result)) != 0:
        return False
    return int(result.f_type) & 0xFFFFFFFF == BPF_FS_MAGIC


def _mount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpffs", os.fsencode(path), b"bpf", 0, b"mode=0700") != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot mount a BPF file system: {os.strerror(number)}", str(path))


def _lock(folder: int, until: float, path: Path) -> None:
    """flock(2), waiting until `until` on the monotonic clock."""
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise TimeoutError(
                    errno.ETIMEDOUT, "another loader is at work and does not end", str(path)
                ) from error
            time.sleep(_ASK_AGAIN_S)
        else:
            return


@dataclass(frozen=True, slots=True)
class PinFolder:
    """Paths of the agent's pins."""

    root: Path
    schema: int = SCHEMA

    @property
    def maps(self) -> Path:
        """Pinned maps of this schema."""
        return self.root / f"maps-v{self.schema}"

    def other_maps(self) -> list[Path]:
        """Folders of other schemas: what an upgrade or downgrade migrates from."""
        return [folder for folder in sorted(self.root.glob("maps-v*")) if folder != self.maps]

    @property
    def links(self) -> Path:
        """Pinned links."""
        return self.root / "links"

    @property
    def programs(self) -> Path:
        """Pinned programs: those that the daemon itself attaches, wherever that is needed."""
        return self.root / "programs"

    def create(self) -> None:
        """Make the folder, and mount a BPF file system where there is none yet.

        On a systemd host /sys/fs/bpf is mounted at boot. Elsewhere it is mounted there when the
        folder lies below it, else on the folder itself.

        Raises:
            OSError: not root, or no BPF file system in this kernel.
        """
        mount = _DEFAULT_MOUNT if self.root.is_relative_to(_DEFAULT_MOUNT) else self.root
        mount.mkdir(parents=True, exist_ok=True)
        if not is_bpffs(mount):
            _mount(mount)
        for folder in (self.root, self.maps, self.links, self.programs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def alone(self, timeout_s: float) -> Iterator[None]:
        """Make the folder and have it to oneself: of all that ask so, one at a time.

        The kernel lets the next one in when the process ends, however that ends.

        Raises:
            TimeoutError: another process had it for `timeout_s` seconds.
            OSError: as `create`.
        """
        until = time.monotonic() + timeout_s
        while True:
            self.create()
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _lock(folder, until, self.root)
                # Removed meanwhile, or mounted over: then the lock is on another folder.
                if self.root.is_dir() and os.path.samestat(os.fstat(folder), self.root.stat()):
                    self.create()
                    yield
                    return
            finally:
                os.close(folder)

    def _is_empty(self) -> bool:
        """Whether nobody else has pinned anything on our own mount."""
        return {entry.name for entry in self.root.iterdir()} <= _MADE_BY_KERNEL

    def exists(self) -> bool:
        """Whether anything of the agent is pinned here."""
        return self.links.is_dir() and any(self.links.iterdir())

    def remove(self) -> list[str]:
        """Remove every pin of ours, links first; what is attached by them is detached.

        Returns the names of the links that went. Idempotent.
        """
        removed = []
        if self.links.is_dir():
            for pin in sorted(self.links.iterdir()):
                pin.unlink()
                removed.append(pin.name)
            self.links.rmdir()
        folders = sorted(self.root.glob("maps-v*"))
        if self.programs.is_dir():
            folders.append(self.programs)
        for folder in folders:
            for pin in sorted(folder.iterdir()):
                pin.unlink()
            folder.rmdir()
        if self.root.is_dir():
            # Others may have pinned something beside us: unmounting would detach it.
            others = {path.name for path in self.root.iterdir()} - _PRELOADED
            if os.path.ismount(self.root) and not others:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.umount2(os.fsencode(self.root), 0) != 0:
                    number = ctypes.get_errno()
                    if number != errno.EBUSY:
                        raise OSError(number, os.strerror(number), str(self.root))
            try:
                self.root.rmdir()
            except OSError as error:
                # EROFS: the unit lets the daemon write in the folder, not around it.
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.EROFS):
                    raise
        return removed
