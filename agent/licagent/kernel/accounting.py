# SPDX-License-Identifier: Apache-2.0
"""Whose memory limit the maps count against."""

from __future__ import annotations

from pathlib import Path


def leave_memory_limits(mounts: Path = Path("/proc/mounts")) -> str:
    """Move this process to the root memory cgroup; returns why that was not possible, or "".

    Since 5.11 a map's memory, the tags of all sockets included, counts against the cgroup of the
    process that made it. Made inside the agent's own unit, other workloads' sockets would fill the
    unit's MemoryMax, and tags could not be made any more. It also saves each connect two charges.
    Only for the loader, which ends at once.
    """
    root = _memory_root(mounts)
    if root is None:
        return "no memory cgroup is mounted"
    try:
        (root / "cgroup.procs").write_text("0", encoding="ascii")
    except OSError as error:
        return f"maps count against this unit's memory limit: {error.strerror}"
    return ""


def _memory_root(mounts: Path) -> Path | None:
    unified: Path | None = None
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _device, point, kind, options, *_rest = line.split(" ")
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(point)
        if kind == "cgroup2" and unified is None:  # later lines may be parts of it, mounted again
            unified = Path(point)
    return unified
