# SPDX-License-Identifier: Apache-2.0
"""Executables worth measuring before they are asked for.

A `unix:sha256` rule can only match a file whose digest is known when it connects. What runs
now comes first, then what is installed in the usual folders.
"""

from __future__ import annotations

import functools
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.host.hostroot import as_host_sees
from licagent.host.mounts import MountTable
from licagent.host.processes import executable_of, pids
from licagent.host.quickstat import quick_stat, quick_stat_in
from licagent.host.walk import ForeignFilesystemError, Walker

ANY_EXECUTE: Final = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
NAMES_MAX: Final = 16_384
"""Names of one folder that are looked at; /usr/bin has some thousands at the most."""
NOTED_NAMES_MAX: Final = 4096
"""The same for a folder that only some program stood in: its owner decides what it holds."""
_AT_ONCE: Final = 16
"""Names, or processes, that are looked at in one step."""
STANDARD_DIRECTORIES: Final = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/libexec",
    "/snap/bin",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An executable: what to call it, and how to open it."""

    path: str  # for people; in another mount namespace it may not exist here
    open_path: str  # what to pass to `identify` and `DigestCache.measure`
    pid: int | None  # a process that runs it


def search_directories(extra: Iterable[str] = ()) -> tuple[str, ...]:
    """The folders to look in: `extra`, the standard ones, and PATH; each real folder once.

    Relative entries of PATH are passed over: they mean something else in each process. Those on
    a filesystem that somebody else serves are passed over as well, and not asked.
    """
    found: dict[str, None] = {}
    for directory in (*extra, *standard_directories()):
        try:
            fd = _walker().open(directory)
        except (OSError, ValueError, ForeignFilesystemError):
            continue
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                found.setdefault(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
        finally:
            os.close(fd)
    return tuple(found)


def standard_directories() -> tuple[str, ...]:
    """The usual folders and PATH, as they are written."""
    return tuple(
        each for each in (*STANDARD_DIRECTORIES, *os.get_exec_path()) if Path(each).is_absolute()
    )


def running() -> Iterator[Candidate | None]:
    """What runs now, each file once; also deleted files and those inside containers.

    None between candidates, so that no step is long.
    """
    seen: set[tuple[int, int, int]] = set()
    for number, pid in enumerate(pids(), start=1):
        if number % _AT_ONCE == 0:
            yield None
        open_path = f"/proc/{pid}/exe"
        try:
            info = quick_stat(open_path)
        except OSError:  # ended, a kernel thread, or not ours to look at
            continue
        key = (info.major, info.minor, info.inode)
        if key in seen:
            continue
        seen.add(key)
        path, _ = executable_of(pid)
        # One whose path is too long to be told runs all the same.
        yield Candidate(path or open_path, open_path, pid)


def installed(
    directories: Iterable[str],
    failed: Callable[[str, Exception], None] | None = None,
    names_max: int = NAMES_MAX,
) -> Iterator[Candidate | None]:
    """What may be an executable in these folders, not below them; each folder once.

    Regular files that somebody may execute, each once, and links, wherever they lead: whoever
    opens them has to look. Not sorted, and None between candidates: whoever owns a folder decides
    how much stands in it, and no step is long. `failed` is called for a folder that is none, or
    cannot be looked into, or that somebody else serves (which is not asked).
    """
    seen: set[tuple[int, int]] = set()
    for directory in directories:
        try:
            yield from _names(directory, seen, names_max)
        except Exception as error:  # noqa: BLE001 - one folder costs nothing but itself
            if failed is not None:
                failed(directory, error)
        yield None


def _names(
    directory: str, seen: set[tuple[int, int]], names_max: int
) -> Iterator[Candidate | None]:
    """Between steps the folder is not held open: somebody may want to unmount it."""
    seen_path = as_host_sees(directory)
    folder, this = _open_folder(directory)
    try:
        if this in seen:
            return
        seen.add(this)
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, names_max)]
    finally:
        os.close(folder)
    files: set[int] = set()
    for first in range(0, len(names), _AT_ONCE):
        yield None
        folder, now = _open_folder(directory)
        try:
            if now != this:
                return
            chosen = [n for n in names[first : first + _AT_ONCE] if _may_run(folder, n, files)]
        finally:
            os.close(folder)
        for name in chosen:
            yield Candidate(f"{directory}/{name}", f"{seen_path}/{name}", None)


def _open_folder(directory: str) -> tuple[int, tuple[int, int]]:
    """A descriptor for listing, and which folder it is."""
    held = _walker().open(directory)
    try:
        # What was found, whatever its path names by now.
        folder = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        info = os.fstat(folder)
    finally:
        os.close(held)
    return folder, (info.st_dev, info.st_ino)


def _may_run(folder: int, name: str, files: set[int]) -> bool:
    """Whether it is a link, or a regular file that somebody may execute and not yet in `files`."""
    try:
        found = quick_stat_in(folder, name)
    except OSError:
        return False
    if not stat.S_ISREG(found.mode):
        return stat.S_ISLNK(found.mode)
    if not found.mode & ANY_EXECUTE or found.inode in files:
        return False
    files.add(found.inode)
    return True


@functools.cache
def _walker() -> Walker:
    own = MountTable()
    try:
        return Walker(own, MountTable(Path("/proc/1/mountinfo")))
    except OSError:
        return Walker(own, own)
