# SPDX-License-Identifier: Apache-2.0
"""Executables worth measuring before they are asked for.

A `unix:sha256` rule can only match a file whose digest is known when it connects. What runs
now comes first, then what is installed in the usual folders.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.host.processes import executable_of, pids
from licagent.host.quickstat import quick_stat

_ANY_EXECUTE: Final = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
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

    Relative entries of PATH are passed over: they mean something else in each process.
    """
    found: dict[str, None] = {}
    for directory in (*extra, *STANDARD_DIRECTORIES, *os.get_exec_path()):
        path = Path(directory)
        if path.is_absolute():
            real = Path(os.path.realpath(path))
            if real.is_dir():
                found.setdefault(str(real))
    return tuple(found)


def running() -> Iterator[Candidate]:
    """What runs now, each file once; also deleted files and those inside containers."""
    seen: set[tuple[int, int, int]] = set()
    for pid in pids():
        open_path = f"/proc/{pid}/exe"
        try:
            info = quick_stat(open_path)
        except OSError:  # ended, a kernel thread, or not ours to look at
            continue
        key = (info.major, info.minor, info.inode)
        if key in seen:
            continue
        path, _ = executable_of(pid)
        if path is not None:
            seen.add(key)
            yield Candidate(path, open_path, pid)


def installed(directories: Iterable[str]) -> Iterator[Candidate]:
    """The executable files in these folders, not below them; each file once."""
    seen: set[tuple[int, int]] = set()
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            path = Path(directory, name)
            try:
                info = path.stat()
            except OSError:
                continue
            key = (info.st_dev, info.st_ino)
            executable = stat.S_ISREG(info.st_mode) and info.st_mode & _ANY_EXECUTE
            if executable and key not in seen:
                seen.add(key)
                yield Candidate(os.path.realpath(path), str(path), None)


def candidates(extra: Iterable[str] = ()) -> Iterator[Candidate]:
    """Running executables, then installed ones. Lazy: each step looks at a few files at most.

    A file that runs and is installed comes twice; the second time it costs one look-up in the
    cache.
    """
    yield from running()
    yield from installed(search_directories(extra))
