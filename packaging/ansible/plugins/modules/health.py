# SPDX-License-Identifier: Apache-2.0
"""Waits until licagent on a host is well, and stays well for a while."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.licagent.fleet.plugins.module_utils.agent_command import (
    ARGUMENTS,
    DEGRADED,
    HEALTHY,
    OPEN,
    Agent,
    CommandFailed,
)

DOCUMENTATION = r"""
module: health
short_description: Wait until licagent is well, and stays well
description:
  - Asks C(licagent status) until it says that all is well, and then for O(stable_s) seconds more.
    A daemon that starts anew in that time begins it again.
  - A host that has joined nothing, and has neither license nor resource, needs no trusted key to
    be well.
  - Reads only; it does the same in check mode.
options:
  timeout_s:
    description: Seconds to wait in all.
    type: int
    default: 60
  stable_s:
    description: Seconds for which the same daemon must stay well.
    type: int
    default: 5
  accepted:
    description:
      - Codes of reasons that do not count, for what a host is known to lack, such as
        V(hook-missing) on a kernel that cannot have the hook.
    type: list
    elements: str
    default: []
  connected:
    description:
      - Whether the link to the control plane must be up as well. Left out, it must be on a host
        that has joined one and whose settings want the link. Without it leases end after minutes,
        and enforcement then refuses what they covered; V(false) is for hosts that have no network
        yet.
    type: bool
  mode:
    description: The mode that must be in force, V(observe) or V(enforce); any if left out.
    type: str
    choices: [observe, enforce]
extends_documentation_fragment:
  - licagent.fleet.agent
  - licagent.fleet.agent.reads_only
"""

EXAMPLES = r"""
- name: The agent is well for half a minute
  licagent.fleet.health:
    timeout_s: 120
    stable_s: 30
"""

RETURN = r"""
state:
  description: enforcing or observing (or degraded, for accepted reasons only).
  type: str
  returned: success
reasons:
  description: The reasons that were accepted, or, of a failure, those that stand against it.
  type: list
  elements: dict
  returned: always
"""

_PAUSE_S = 0.5
_NEW = ("trust-missing",)
"""What a host that was given nothing yet may lack: there is nothing that it would verify."""
_WITHOUT_LINK = (None, "unenrolled", "off")
"""States of a host that has no control plane, or is to have no link to it."""
_ANSWER_S = 5


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "timeout_s": {"type": "int", "default": 60},
            "stable_s": {"type": "int", "default": 5},
            "accepted": {"type": "list", "elements": "str", "default": []},
            "connected": {"type": "bool"},
            "mode": {"type": "str", "choices": ["observe", "enforce"]},
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )
    if module.params["stable_s"] > module.params["timeout_s"]:
        module.fail_json(msg="stable_s is longer than timeout_s, so no host could pass")
    try:
        _wait(module)
    except FileNotFoundError:
        module.fail_json(msg=f"{module.params['executable']}: licagent is not installed")


def _wait(module: AnsibleModule) -> None:
    deadline_s = time.monotonic() + module.params["timeout_s"]
    agent = Agent(module)
    well_since_s: float | None = None
    daemon: object = None
    while True:
        answer, against = _look(module, agent)
        now_s = time.monotonic()
        if against or answer.get("pid") != daemon:
            daemon, well_since_s = answer.get("pid"), None
        if not against:
            well_since_s = now_s if well_since_s is None else well_since_s
            if now_s - well_since_s >= module.params["stable_s"]:
                module.exit_json(
                    changed=False,
                    state=answer.get("state"),
                    mode=answer.get("mode"),
                    version=answer.get("version"),
                    reasons=answer.get("reasons"),
                )
        if now_s >= deadline_s:
            words = "; ".join(f"{one['code']}: {one['message']}" for one in against)
            module.fail_json(
                msg="licagent is not well: "
                + (words or f"it was, but not for {module.params['stable_s']} s on end"),
                reasons=against,
            )
        time.sleep(_PAUSE_S)


def _look(module: AnsibleModule, agent: Agent) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The status, and what stands against calling it well."""
    try:
        status, answer = agent.ask(
            "status", "--timeout", str(_ANSWER_S), well=(HEALTHY, DEGRADED, OPEN)
        )
    except CommandFailed as failure:
        return {}, [{"code": failure.code.lower() or "failed", "message": str(failure)}]
    accepted = {*module.params["accepted"], *(_NEW if _is_new(answer) else ())}
    against = [one for one in answer.get("reasons") or () if one["code"] not in accepted]
    if status == OPEN:
        against.append({"code": "break-glass", "message": "the host is open by break-glass"})
    wanted = module.params["mode"]
    if wanted and answer.get("mode") != wanted:
        against.append({"code": "mode", "message": f"the mode in force is not {wanted}"})
    control = answer.get("control") or {}
    must_be_connected = module.params["connected"]
    if must_be_connected is None:
        must_be_connected = control.get("state") not in _WITHOUT_LINK
    if must_be_connected and control.get("state") != "connected":
        why = control.get("last_error") or control.get("state") or "not enrolled"
        against.append({"code": "not-connected", "message": f"no link to a control plane: {why}"})
    return answer, against


def _is_new(answer: dict[str, Any]) -> bool:
    control = answer.get("control") or {}
    policy = answer.get("policy") or {}
    is_alone = control.get("state") == "unenrolled"
    return is_alone and not answer.get("licenses") and not policy.get("resources")


if __name__ == "__main__":
    main()
