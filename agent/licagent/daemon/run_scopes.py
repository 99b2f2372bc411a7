# SPDX-License-Identifier: Apache-2.0
"""Cgroups that `licagent run` made: one for each command, taken away once it has ended."""

from __future__ import annotations

import contextlib
from pathlib import Path

from licagent.daemon.policy_keeper import RUN_FOLDER


def tidy(root: Path) -> int:
    """Remove the scopes below the cgroup `root` whose commands have ended; how many.

    A scope is named by the process that asked for it and then became the command. While that
    process lives, it may be about to enter; and the kernel refuses to remove a cgroup in which
    anything runs that the command left behind.
    """
    removed = 0
    for scope in sorted((root / RUN_FOLDER).glob("*/*/")):
        if not Path("/proc", scope.name).exists():
            with contextlib.suppress(OSError):
                scope.rmdir()
                removed += 1
    return removed


def remove(root: Path) -> None:
    """Remove what `licagent run` made below the cgroup `root`, save where something runs."""
    tidy(root)
    for folder in (*sorted((root / RUN_FOLDER).glob("*/")), root / RUN_FOLDER):
        with contextlib.suppress(OSError):
            folder.rmdir()
