# SPDX-License-Identifier: Apache-2.0
"""Cgroups of our own under the cgroup v2 mount, removed whatever happens in between."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_NUMBERS: Final = itertools.count(1)
_REMOVAL_LIMIT_S: Final = 30.0


def mount_point() -> Path:
    """Where cgroup v2 is mounted; hybrid systems have it beside the v1 hierarchies."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise RuntimeError("no cgroup2 mount in /proc/mounts; mount -t cgroup2 none <folder>")


class CgroupTree:
    """A cgroup and its descendants.

    `parent` is an existing cgroup (default: the mount's root). Leaving the context kills what
    still runs in the tree (cgroup.kill, Linux 5.14) and removes it.
    """

    def __init__(self, parent: Path | None = None, name: str = "") -> None:
        unique = f"licagent-test-{os.getpid()}-{next(_NUMBERS)}"
        self.root = (parent or mount_point()) / (name or unique)

    def __enter__(self) -> Self:
        self.root.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def make(self, relative: str) -> Path:
        """Make a cgroup (and its parents) below the root; one that exists is answered as is."""
        path = self.root / relative
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self) -> None:
        """Kill what runs in the tree and remove it. Harmless when it is gone already."""
        if not self.root.exists():
            return
        # It may have vanished meanwhile; rmdir below reports what matters.
        with contextlib.suppress(OSError):
            (self.root / "cgroup.kill").write_text("1")
        deepest_first = sorted(
            (path for path in self.root.rglob("*") if path.is_dir()),
            key=lambda path: len(path.parts),
            reverse=True,
        )
        limit = time.monotonic() + _REMOVAL_LIMIT_S
        for path in [*deepest_first, self.root]:
            while path.exists():
                try:
                    path.rmdir()
                except OSError:  # EBUSY until the last killed process is reaped
                    if time.monotonic() > limit:
                        raise
                    time.sleep(0.005)


def move(pid: int, cgroup: Path) -> None:
    """Put a process (all its threads) into a cgroup."""
    (cgroup / "cgroup.procs").write_text(f"{pid}\n")
