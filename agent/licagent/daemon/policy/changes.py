# SPDX-License-Identifier: Apache-2.0
"""Policies that root checks and applies over the local socket. On the kernel thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from licagent.daemon.policy.reports import amounts
from licagent.domain.policy import PolicyError
from licagent.kernel.libbpf import BpfError
from licagent.local.errors import ErrorCode, LocalError
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.policy.compiled import Compiled
    from licagent.local.methods import Params


def check(agent: Agent, params: Params) -> Mapping[str, object]:
    """Judge policy files; nothing is changed. LocalError with every problem found."""
    try:
        texts = _merged(agent.keeper.installed(), params["files"])
        compiled = agent.keeper.compile(texts, agent.licenses())
    except PolicyError as error:
        raise _bad_policy(error) from error
    except StoreError as error:  # names that are new are numbered on the disk
        raise _not_kept(error) from error
    return {"schema_version": 1, **amounts(compiled), "warnings": []}


def apply(agent: Agent, params: Params) -> Mapping[str, object]:
    """Put policy files in force and install them. LocalError; then the last policy stays."""
    agent.licensing.load()
    agent.write_licenses()
    try:
        installed = agent.keeper.installed()
        compiled = agent.keeper.compile(_merged(installed, params["files"]), agent.licenses())
    except StoreError as error:
        raise _not_kept(error) from error
    except PolicyError as error:
        if not params["files"]:  # so will the next start find them
            agent.policy.problem = str(error)
        raise _bad_policy(error) from error
    previous = agent.policy.compiled
    changed = previous is None or previous.tables != compiled.tables
    try:
        if changed:
            agent.policy.switch(compiled)
        else:
            agent.policy.take_over(compiled)
        agent.keeper.install(params["files"], installed)
    except BpfError as error:
        raise LocalError(
            ErrorCode.REFUSED,
            f"the policy does not fit the kernel's tables: {error}",
            f"{_stays(agent, compiled)}; docs/reference/limits.md has the sizes",
        ) from error
    except (StoreError, OSError) as error:
        # In force without being on the disk, it would be gone with the next start.
        agent.policy.go_back(compiled, previous)
        raise _not_kept(error, _stays(agent, compiled)) from error
    agent.policy.problem = ""
    return {
        "schema_version": 1,
        "changed": changed,
        "generation": agent.kernel.control.generation,
        **amounts(compiled),
    }


def _stays(agent: Agent, compiled: Compiled) -> str:
    if agent.policy.compiled is compiled:
        return "it is in force until the daemon ends, as there was none before"
    return "the last policy stays in force"


def _not_kept(error: Exception, stays: str = "the last policy stays in force") -> LocalError:
    return LocalError(
        ErrorCode.REFUSED,
        f"the policy cannot be kept: {error}",
        f"{stays}; make room on the disk, then apply again",
    )


def _merged(
    installed: tuple[tuple[str, str], ...], files: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """The installed files, with those given in place of their namesakes."""
    if len(dict(files)) != len(files):
        raise LocalError(
            ErrorCode.INVALID_PARAMS,
            "two of the files have one name",
            "policy.d has room for one of each name: rename one",
        )
    for name, _text in files:
        if "/" in name or name.startswith(".") or not name.endswith(".toml"):
            raise LocalError(
                ErrorCode.INVALID_PARAMS, f"{name!r} is no name of a policy file", "use NAME.toml"
            )
    merged = {**dict(installed), **dict(files)}
    return tuple(sorted(merged.items()))


def _bad_policy(error: PolicyError) -> LocalError:
    problems = [
        {
            "file": problem.file,
            "line": problem.line,
            "key": problem.key,
            "message": problem.message,
            "suggestion": problem.suggestion,
        }
        for problem in error.problems
    ]
    return LocalError(
        ErrorCode.REFUSED,
        f"the policy is refused: {len(problems)} problem{'s' if len(problems) != 1 else ''}",
        "nothing was changed; mend them all and apply again",
        {"problems": problems},
    )
