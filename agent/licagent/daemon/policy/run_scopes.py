# SPDX-License-Identifier: Apache-2.0
"""Cgroups that `licagent run` made: one for each command, taken away once it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.local.methods import Params

RUN_FOLDER: Final = "licagent.run"
"""Cgroup below the agent's root that holds the scopes of `licagent run`, one folder a license."""


def run_cgroup(jti: str) -> str:
    """The cgroup of `licagent run --license JTI`, below the agent's root."""
    safe = "".join(
        c if c.isascii() and (c.isalnum() or c in "-_.") else f"_{ord(c):x}_" for c in jti
    )
    return f"/{RUN_FOLDER}/{safe}"


def prepare(agent: Agent, params: Params) -> Mapping[str, object]:
    """Make a cgroup in which a command runs under a license. LocalError where it cannot."""
    jti = params["license"]
    held = agent.licensing.held.get(jti)
    if held is None:
        raise LocalError(
            ErrorCode.NOT_FOUND,
            f"no license {jti!r} is on this host",
            "list them: licagent license list",
        )
    judged = agent.licensing.judge(held.license)
    if params["valid"] and not judged.valid:
        raise LocalError(
            ErrorCode.REFUSED,
            f"license {jti!r} does not hold here: {judged.detail or judged.state.value}",
            f"see what it needs: licagent license show {jti}",
            {"state": judged.state.value},
        )
    tidy(agent.tree.root)
    path = f"{run_cgroup(jti)}/{params['pid']}"
    if agent.keeper.runs.allow(jti):
        agent.policy.renew()
    agent.tree.create(path)
    return {"schema_version": 1, "cgroup": str(agent.tree.directory(path))}


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
