# SPDX-License-Identifier: Apache-2.0
"""Says who would be refused on a host if it enforced, and who was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.licagent.fleet.plugins.module_utils.agent_command import (
    ARGUMENTS,
    Agent,
    CommandFailed,
)

DOCUMENTATION = r"""
module: shadow_info
short_description: Who would be refused if the host enforced, and who was
description:
  - Asks C(licagent shadow), with which the agent decides every use of its event log that had no
    valid license, or was refused, again by the rules and licenses of now.
  - What these would allow is V(licensed). What the operator named in O(accepted) is V(accepted).
    All else is V(unexplained), be it refused or not known. See RV(unexplained[].now.why).
  - What a record does not show, such as the executable's content (C(unix:sha256)), and conditions
    on hours and posture, explain nothing. Name such a use in O(accepted), or bind it otherwise.
options:
  accepted:
    description:
      - Use that is meant to be refused. A use is accepted when it has every value that one of
        these names.
    type: list
    elements: dict
    default: []
    suboptions:
      resource:
        description: The resource.
        type: str
      user:
        description: The user's name.
        type: str
      executable:
        description: Path of the executable.
        type: str
      unit:
        description: The systemd unit.
        type: str
      reason:
        description: Why it is to be refused, for those who read this later.
        type: str
        required: true
  since:
    description:
      - Looks only at use since this moment, as RV(at) has it. All that the log has if left out.
    type: str
extends_documentation_fragment:
  - licagent.fleet.agent
  - licagent.fleet.agent.reads_only
"""

EXAMPLES = r"""
- name: Look at the shadow usage
  licagent.fleet.shadow_info:
    accepted:
      - resource: orders-db
        user: intern
        reason: asked and answered, ticket 4711
  register: shadow
"""

RETURN = r"""
unexplained:
  description: Uses that would be refused, or of which that is not known, and that nobody has
    accounted for.
  type: list
  elements: dict
  returned: success
licensed:
  description: Uses that would be allowed now.
  type: list
  elements: dict
  returned: success
accepted:
  description: Uses that are meant to be refused.
  type: list
  elements: dict
  returned: success
refused:
  description: Uses that were refused or cut, whatever would become of them now, but for those that
    are accepted.
  type: list
  elements: dict
  returned: success
observed_s:
  description: For how many seconds the agent has watched the resource of the policy that it has
    watched least, as it is now. 0 where the policy has none.
  type: int
  returned: success
resources:
  description: The resources of the policy, each with C(watched_s).
  type: list
  elements: dict
  returned: success
mode:
  description: The mode in force, observe or enforce.
  type: str
  returned: success
at:
  description: When it was looked, by the clock of the host (RFC 3339).
  type: str
  returned: success
"""

_KEYS = ("resource", "user", "executable", "unit")
"""What an acceptance may name."""

_USES_MAX = "20000"
_READ_S = "120"
"""The log may have some 30 MB."""


def main() -> None:
    """Run as a module."""
    accepted: dict[str, Any] = {key: {"type": "str"} for key in _KEYS}
    module = AnsibleModule(
        argument_spec={
            "accepted": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {**accepted, "reason": {"type": "str", "required": True}},
            },
            "since": {"type": "str"},
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )
    for one in module.params["accepted"]:
        if all(one[key] is None for key in _KEYS):
            module.fail_json(msg=f"an acceptance must name at least one of {', '.join(_KEYS)}")
    try:
        module.exit_json(**_judged(module, Agent(module)))
    except FileNotFoundError:
        module.fail_json(msg=f"{module.params['executable']}: licagent is not installed")
    except CommandFailed as failure:
        module.fail_json(msg=f"shadow usage cannot be read: {failure}")


def _judged(module: AnsibleModule, agent: Agent) -> dict[str, Any]:
    since = module.params["since"]
    window = ("--since", since) if since else ()
    _, answer = agent.ask("shadow", "--limit", _USES_MAX, "--timeout", _READ_S, *window)
    if answer["left_out"]:
        module.fail_json(
            msg=f"more than {_USES_MAX} different uses are on record, and {answer['left_out']} "
            "are not told: bind or accept what is used most, and give `since`"
        )
    if answer["events_dropped"]:
        module.warn(
            f"{answer['events_dropped']} events were lost on their way to the log: "
            "uses may be missing"
        )
    found: dict[str, list[dict[str, Any]]] = {"unexplained": [], "licensed": [], "accepted": []}
    refused = []
    for row in answer["rows"]:
        if _is_accepted(row, module.params["accepted"]):
            found["accepted"].append(row)
            continue
        found["licensed" if row["now"]["verdict"] == "allow" else "unexplained"].append(row)
        if row["refused"]:
            refused.append(row)
    return {
        "changed": False,
        "mode": answer["mode"],
        "at": answer["at"],
        "resources": answer["resources"],
        "observed_s": min((each["watched_s"] for each in answer["resources"]), default=0),
        "refused": refused,
        **found,
    }


def _is_accepted(row: Mapping[str, Any], accepted: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an operator said that this use is to be refused: every key named is the row's."""
    return any(all(one[key] in (None, row[key]) for key in _KEYS) for one in accepted)


if __name__ == "__main__":
    main()
