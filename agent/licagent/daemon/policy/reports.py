# SPDX-License-Identifier: Apache-2.0
"""What questions about the policy in force are answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from licagent.daemon.decisions import rfc3339
from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.policy.compiled import Compiled

Report = dict[str, Any]


def amounts(compiled: Compiled) -> Report:
    """How large a policy is."""
    return {
        "resources": compiled.amounts[0],
        "bindings": compiled.amounts[1],
        "rules": len(compiled.tables.rules),
    }


def policy_show(agent: Agent) -> Report:
    """The policy in force."""
    compiled = agent.policy.compiled
    if compiled is None:
        raise LocalError(
            ErrorCode.NOT_FOUND, "no policy is in force", "see `licagent policy check`"
        )
    return {
        "schema_version": 1,
        "generation": agent.kernel.control.generation,
        "loaded_at": rfc3339(agent.policy.loaded_at),
        "rules": len(compiled.tables.rules),
        "resources": [
            {
                "name": each.name,
                "kind": each.kind.value,
                "mode": "enforce" if each.enforce else "observe",
                "covers": _covers(each),
                "description": each.description,
                "source": each.source,
            }
            for each in compiled.policy.resources
        ],
        "bindings": [
            {
                "name": each.name,
                "license": each.license,
                "selectors": [str(selector) for selector in each.selectors],
                "resources": list(each.resources or ()),
                "source": each.source,
            }
            for each in compiled.policy.bindings
        ],
    }


def _covers(resource: Any) -> list[str]:
    def ports(ranges: Any) -> str:
        return ",".join(
            "all ports"
            if (each.first, each.last) == (0, 65535)
            else (str(each.first) if each.first == each.last else f"{each.first}-{each.last}")
            for each in ranges
        )

    if resource.destinations:
        return [f"{each.cidr} {ports(each.ports)}" for each in resource.destinations]
    return [ports(resource.ports)] if resource.ports else list(resource.paths)
