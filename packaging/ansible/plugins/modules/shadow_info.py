# SPDX-License-Identifier: Apache-2.0
"""Says who would be refused on a host if it enforced."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.licagent.fleet.plugins.module_utils.agent_command import (
    ARGUMENTS,
    Agent,
    CommandFailed,
)
from ansible_collections.licagent.fleet.plugins.module_utils.shadow_use import (
    KEYS,
    is_accepted,
    is_licensed,
    rows_of,
)

DOCUMENTATION = r"""
module: shadow_info
short_description: Who would be refused if the host enforced
description:
  - Reads all that the host's event log has of use without a license (shadow usage), and judges
    each use by the policy in force. What a valid license's binding covers now is V(licensed); what
    the operator named in O(accepted) is V(accepted); all else is V(unexplained).
  - A selector that a record cannot show, such as C(unix:sha256) or C(unix:group), explains
    nothing. Name such a use in O(accepted), or bind it by another selector.
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
  executable:
    description: Where licagent is.
    type: path
    default: /usr/bin/licagent
  config:
    description: Its settings file, if not /etc/licagent/agent.toml.
    type: path
attributes:
  check_mode:
    description: Does the same; it changes nothing.
    support: full
author: The licagent developers
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
  description: Uses that would be refused, and that nobody has accounted for.
  type: list
  elements: dict
  returned: success
licensed:
  description: Uses that a binding covers now.
  type: list
  elements: dict
  returned: success
accepted:
  description: Uses that are meant to be refused.
  type: list
  elements: dict
  returned: success
observed_s:
  description: Age of the oldest record, in seconds. What was before it is not known.
  type: int
  returned: success
mode:
  description: The mode in force, observe or enforce.
  type: str
  returned: success
"""

_EVENTS_MAX = "1000000"
_READ_S = "120"
"""The log may have some 30 MB."""


def main() -> None:
    """Run as a module."""
    accepted: dict[str, Any] = {key: {"type": "str"} for key in KEYS}
    module = AnsibleModule(
        argument_spec={
            "accepted": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {**accepted, "reason": {"type": "str", "required": True}},
            },
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )
    for one in module.params["accepted"]:
        if all(one[key] is None for key in KEYS):
            module.fail_json(msg=f"an acceptance must name at least one of {', '.join(KEYS)}")
    try:
        module.exit_json(**_judged(module, Agent(module)))
    except FileNotFoundError:
        module.fail_json(msg=f"{module.params['executable']}: licagent is not installed")
    except CommandFailed as failure:
        module.fail_json(msg=f"shadow usage cannot be read: {failure}")


def _judged(module: AnsibleModule, agent: Agent) -> dict[str, Any]:
    # The policy first: a use that comes meanwhile is then later than it, and not explained by it.
    _, policy = agent.ask("policy", "show")
    _, status = agent.ask("status", well=(0, 150, 151))
    entitled = {
        str(license_["id"]): _resources(agent, str(license_["id"]))
        for license_ in status.get("licenses") or ()
        if license_.get("state") == "valid"
    }
    found: dict[str, list[dict[str, Any]]] = {"unexplained": [], "licensed": [], "accepted": []}
    events = list(agent.lines("events", "--limit", _EVENTS_MAX, "--timeout", _READ_S))
    for row in rows_of(one for one in events if one.get("verdict") == "shadow"):
        if is_accepted(row, module.params["accepted"]):
            found["accepted"].append(row)
        elif is_licensed(row, policy, entitled):
            found["licensed"].append(row)
        else:
            found["unexplained"].append(row)
    return {
        "changed": False,
        "mode": status.get("mode"),
        "observed_s": _age_s(str(events[0]["at"] if events else status.get("started_at"))),
        **found,
    }


def _age_s(moment: str) -> int:
    return int(time.time() - datetime.fromisoformat(moment).timestamp())


def _resources(agent: Agent, license_id: str) -> set[str]:
    _, answer = agent.ask("license", "show", license_id)
    entitlements = (answer.get("license") or {}).get("entitlements") or ()
    return {str(one["resource"]) for one in entitlements}


if __name__ == "__main__":
    main()
