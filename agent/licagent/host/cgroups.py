# SPDX-License-Identifier: Apache-2.0
"""The cgroup v2 tree: where it is, the ids the kernel knows its folders by, and whose they are.

A cgroup's id is the inode number of its folder (kernfs, 64 bits; bpf_get_current_cgroup_id(2)
returns the same). Paths are relative to the tree's root, start with "/", and the root is "/".
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from licagent.host.cgroup_names import CgroupNames, matches, names_of, parts_of
from licagent.host.mounts import unescape

__all__ = [
    "Cgroup",
    "CgroupError",
    "CgroupNames",
    "CgroupTree",
    "cgroup_of_process",
    "find_mount",
    "matches",
    "names_of",
]

_FILEID_KERNFS = 0xFE  # include/linux/exportfs.h, since 5.5


class CgroupError(Exception):
    """The cgroup tree cannot be used as asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One folder of the tree."""

    id: int
    path: str


def find_mount(mounts: Path = Path("/proc/mounts")) -> Path:
    """The first cgroup v2 mount.

    It is /sys/fs/cgroup on a systemd host and /sys/fs/cgroup/unified on a hybrid one, so it
    is looked up, never assumed. Raises CgroupError where there is none.
    """
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if len(fields) >= 3 and fields[2] == "cgroup2":
            return Path(unescape(fields[1]))
    raise CgroupError(
        f"no cgroup v2 filesystem in {mounts}: mount one with "
        "`mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with "
        "systemd.unified_cgroup_hierarchy=1"
    )


class CgroupTree:
    """A cgroup v2 tree, or the subtree that a test or demo names."""

    def __init__(self, root: Path, mount: Path) -> None:
        """Use `open` instead, which checks both."""
        self.root = root
        self.mount = mount
        self._prefix = "/" + str(root.relative_to(mount)) if root != mount else ""

    @classmethod
    def open(cls, root: str | Path = "auto", mounts: Path = Path("/proc/mounts")) -> CgroupTree:
        """Open the tree at `root`, or at the cgroup v2 mount when it is "auto".

        Raises CgroupError where `root` is no folder of a cgroup v2 tree.
        """
        mount = find_mount(mounts)
        if str(root) == "auto":
            return cls(mount, mount)
        path = Path(os.path.realpath(root))
        if not path.is_relative_to(mount) or not (path / "cgroup.procs").exists():
            raise CgroupError(
                f'{root} is not a cgroup v2 folder: give one below {mount}, or cgroup_root = "auto"'
            )
        return cls(path, mount)

    def directory(self, path: str) -> Path:
        """The folder of a cgroup path; CgroupError if it would leave the tree."""
        parts = parts_of(path)
        if any(part in (".", "..") for part in parts):
            raise CgroupError(f"{path!r} is not a cgroup path: it may not hold . or ..")
        return self.root.joinpath(*parts)

    def id_of(self, path: str = "/") -> int:
        """The kernel's id of a cgroup; FileNotFoundError where there is none."""
        return self.directory(path).stat().st_ino

    def path_of(self, cgroup_id: int) -> str | None:
        """The path of the cgroup with this id; None where it is gone or outside the tree.

        open_by_handle_at(2) with the id as the handle (needs CAP_DAC_READ_SEARCH); where the
        kernel refuses, the tree is searched.
        """
        try:
            found = _path_by_handle(self.mount, cgroup_id)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOENT):
                return None
            return next((c.path for c in self.walk() if c.id == cgroup_id), None)
        return self.relative(found)

    def relative(self, directory: str) -> str | None:
        """The path in this tree of an absolute folder name, or None when it is outside."""
        root = str(self.root)
        if directory == root:
            return "/"
        if directory.startswith(root + "/"):
            return directory[len(root) :]
        return None

    def walk(self, start: str = "/") -> Iterator[Cgroup]:
        """All cgroups from `start` down, each parent before its children.

        A folder that goes away meanwhile is passed over. The generator holds no descriptors
        between steps, so the caller may stop and go on in slices.
        """
        top = self.directory(start)
        try:
            waiting = [(top, top.stat().st_ino)]
        except FileNotFoundError:
            return
        while waiting:
            directory, cgroup_id = waiting.pop()
            path = self.relative(str(directory))
            if path is not None:
                yield Cgroup(cgroup_id, path)
            try:
                with os.scandir(directory) as entries:
                    children = [
                        (Path(entry.path), entry.inode())
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False)
                    ]
            except FileNotFoundError:
                continue
            waiting.extend(reversed(children))

    def of_process(self, pid: int) -> str | None:
        """The path of a process's cgroup in this tree; None when it is outside it or gone."""
        mount_path = cgroup_of_process(pid)
        if mount_path is None:
            return None
        if not self._prefix:
            return mount_path
        if mount_path == self._prefix:
            return "/"
        if mount_path.startswith(self._prefix + "/"):
            return mount_path[len(self._prefix) :]
        return None

    def processes(self, path: str) -> tuple[int, ...]:
        """The pids in one cgroup, without its descendants'."""
        text = (self.directory(path) / "cgroup.procs").read_text()
        return tuple(int(line) for line in text.split())

    def create(self, path: str) -> Cgroup:
        """Make a cgroup and its missing parents; one that is there is taken as it is."""
        directory = self.directory(path)
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        return Cgroup(directory.stat().st_ino, "/" + "/".join(parts_of(path)))

    def enter(self, path: str, pid: int) -> None:
        """Move a process into a cgroup."""
        (self.directory(path) / "cgroup.procs").write_text(str(pid))

    def remove(self, path: str) -> None:
        """Remove a cgroup and its descendants; one that is gone already is fine.

        Raises CgroupError, naming the processes, where one of them is still in use.
        """
        if not parts_of(path):
            raise CgroupError("the root of the cgroup tree cannot be removed")
        for cgroup in reversed(list(self.walk(path))):
            try:
                self.directory(cgroup.path).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                pids = ", ".join(map(str, self.processes(cgroup.path))) or "in a child"
                raise CgroupError(
                    f"cgroup {cgroup.path} is in use by processes {pids}: end them first"
                ) from error


def cgroup_of_process(pid: int) -> str | None:
    """The cgroup v2 path of a process relative to the mount; None when it is gone.

    The line "0::/path" of /proc/PID/cgroup (cgroups(7)). A path outside our cgroup namespace
    starts with "/.." and is answered as None. A removed cgroup's "(deleted)" mark is cut.
    """
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in text.splitlines():
        if line.startswith("0::"):
            path = line[3:].removesuffix(" (deleted)")
            return None if path.startswith("/..") else path
    return None


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("id", ctypes.c_uint64),
    )


def _path_by_handle(mount: Path, cgroup_id: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = _FileHandle(8, _FILEID_KERNFS, cgroup_id)
    mount_fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = libc.open_by_handle_at(mount_fd, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"cgroup id {cgroup_id}")
    finally:
        os.close(mount_fd)
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    if target.endswith(" (deleted)"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target)
    return target
