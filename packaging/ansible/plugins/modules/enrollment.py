# SPDX-License-Identifier: Apache-2.0
"""Joins a host to its control plane, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.licagent.fleet.plugins.module_utils.agent_command import (
    ARGUMENTS,
    Agent,
    CommandFailed,
    installed,
)

DOCUMENTATION = r"""
module: enrollment
short_description: Join a host to a control plane of licagent
description:
  - Gives the host an identity of the control plane that the join token names.
  - A host that has joined already keeps its identity, and nothing changes. The token is not used
    up then, nor is it needed.
  - A host that was evicted is not let in again unless O(identity) says so.
  - The token goes to licagent by standard input, where no list of processes shows it.
options:
  join:
    description: What C(licplane token create) printed. Needed only where the host has not joined.
    type: str
  identity:
    description:
      - C(keep) joins a host that has not joined, and fails on one that was evicted.
      - C(again) makes a new key for the same host, C(new) makes a host of its own of a copy. Both
        change something on each run; see C(licplane host split).
    type: str
    choices: [keep, again, new]
    default: keep
attributes:
  check_mode:
    description: Says whether the host would join.
    support: full
extends_documentation_fragment:
  - licagent.fleet.agent
"""

EXAMPLES = r"""
- name: Join the control plane
  licagent.fleet.enrollment:
    join: "{{ licagent_join_token }}"
"""

RETURN = r"""
would_join:
  description: Whether the host has yet to join.
  type: bool
  returned: in check mode, or when it has joined before or was evicted
is_installed:
  description: Whether licagent is there.
  type: bool
  returned: in check mode, where the host has yet to join
is_running:
  description:
    - Whether its daemon answers. Where it does not, nobody can say whether the host has joined, and
      RV(would_join) is true.
  type: bool
  returned: in check mode, where the host has yet to join
host_status:
  description: What the control plane last said of the host, such as evicted.
  type: str
  returned: when it was evicted
host_id:
  description: The host's id at the control plane.
  type: str
  returned: once it has joined
server:
  description: Address of the control plane.
  type: str
  returned: once it has joined
"""

_UNENROLLED = "unenrolled"
_EVICTED = "evicted"


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "join": {"type": "str", "no_log": True},
            "identity": {
                "type": "str",
                "choices": ["keep", "again", "new"],
                "default": "keep",
            },
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )
    agent = Agent(module)
    try:
        module.exit_json(**_joined(module, agent))
    except FileNotFoundError:
        module.fail_json(msg=f"{module.params['executable']}: licagent is not installed")
    except CommandFailed as failure:
        module.fail_json(msg=f"the host did not join: {failure}")


def _joined(module: AnsibleModule, agent: Agent) -> dict[str, Any]:
    answer = installed(agent, ("status",))
    control = (answer[1].get("control") or {}) if answer else {}
    before = {"host_id": control.get("host_id"), "server": control.get("server")}
    is_member = bool(control) and control.get("state") != _UNENROLLED
    if is_member and module.params["identity"] == "keep":
        if control.get("host_status") == _EVICTED:
            # Somebody put it out, for a reason that a play cannot know.
            module.fail_json(
                msg=f"the host was evicted by its control plane ({before['host_id']}); to let it in"
                " again give a join token and `identity: again`",
                would_join=True,
                host_status=_EVICTED,
                **before,
            )
        return {"changed": False, "would_join": False, **before}
    # A host without licagent, in check mode: the package comes first, in a run that is not one.
    if module.check_mode:
        after = {"host_id": "made by the control plane", "server": "as the token says"}
        return {
            "changed": True,
            "would_join": True,
            "is_installed": Path(module.params["executable"]).exists(),
            "is_running": answer is not None,
            "diff": {"before": before, "after": after},
        }
    if not module.params["join"]:
        module.fail_json(
            msg="the host has joined no control plane: give `join`, as `licplane token create`"
            " prints it"
        )
    arguments = ["enroll", "-"]
    if module.params["identity"] != "keep":
        arguments.append(f"--{module.params['identity']}")
    _, result = agent.ask(*arguments, data=module.params["join"])
    after = {"host_id": result.get("host_id"), "server": result.get("server")}
    return {
        "changed": bool(result.get("changed")),
        "diff": {"before": before, "after": after},
        **after,
    }


if __name__ == "__main__":
    main()
