# SPDX-License-Identifier: Apache-2.0
"""Cgroups that `licagent run` made: one for each command, taken away once it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from licagent.domain.license import LicenseState
from licagent.local.errors import ErrorCode, LocalError
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.local.methods import Params

_FINAL: Final = frozenset({LicenseState.EXPIRED, LicenseState.REVOKED})
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
    runs = agent.keeper.runs
    with contextlib.suppress(StoreError):  # the next one tries again
        runs.forget(_ended(agent, runs.ids - {jti}))
    try:
        runs.allow(jti)
        compiled = agent.policy.compiled
        # Not only when it is new: the last time may have failed half way.
        is_ready = compiled is None or jti in compiled.frame.run_licenses or agent.policy.renew()
    except (StoreError, OSError) as error:
        raise LocalError(
            ErrorCode.REFUSED,
            f"no rule for license {jti!r} could be put in force: {error}",
            "the command was not started; see `licagent doctor`",
        ) from error
    if not is_ready:
        raise LocalError(
            ErrorCode.REFUSED,
            f"no rule for license {jti!r} could be made: the policy in force is refused now",
            "see what is wrong with it: licagent policy check",
        )
    path = f"{run_cgroup(jti)}/{params['pid']}"
    agent.tree.create(path)
    return {"schema_version": 1, "cgroup": str(agent.tree.directory(path))}


def _ended(agent: Agent, ids: Iterable[str]) -> list[str]:
    """Those of the licenses that have ended and under which nothing runs.

    A pipeline may have one for each build.
    """
    ended = []
    for jti in ids:
        held = agent.licensing.held.get(jti)
        if held is not None and agent.licensing.judge(held.license).state not in _FINAL:
            continue
        folder = agent.tree.directory(run_cgroup(jti))
        with contextlib.suppress(OSError):  # there is none
            folder.rmdir()
        if not folder.exists():
            ended.append(jti)
    return ended


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
