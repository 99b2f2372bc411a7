# SPDX-License-Identifier: Apache-2.0
"""Puts policy files in force on a host, all of them or none."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.licagent.fleet.plugins.module_utils.agent_command import (
    ARGUMENTS,
    Agent,
    CommandFailed,
    installed,
)

DOCUMENTATION = r"""
module: policy
short_description: Put policy files of licagent in force
description:
  - Installs the files into the policy folder and has the daemon take them, all in one step.
  - A policy with any mistake is refused whole. Nothing is installed then, the last good policy
    stays in force, and every mistake is named with file and line.
  - No service is restarted or reloaded.
  - Files that are there and are not named stay in force, unless O(exclusive) is set.
options:
  files:
    description: The files, by name.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name in the policy folder; ends in .toml.
        type: str
        required: true
      content:
        description: Its text.
        type: str
        required: true
  exclusive:
    description:
      - Whether policy files that O(files) does not name are removed. They go in the same step as
        the new ones come, and the policy is judged without them. What they protected is open then.
      - A file that is gone from the folder while the daemon still goes by it, as after an
        interrupted run, counts as one that is there.
    type: bool
    default: false
  folder:
    description: The policy folder.
    type: path
    default: /etc/licagent/policy.d
attributes:
  check_mode:
    description: Has the policy judged on the host, where licagent is installed.
    support: full
  diff_mode:
    description: Shows each file.
    support: full
extends_documentation_fragment:
  - licagent.fleet.agent
"""

EXAMPLES = r"""
- name: Put the policy of the orders service in force
  licagent.fleet.policy:
    files:
      - name: orders.toml
        content: "{{ lookup('ansible.builtin.file', 'orders.toml') }}"
"""

RETURN = r"""
generation:
  description: The policy's generation in the kernel.
  type: int
  returned: when it was applied
"""

_NOTHING_DONE = {"REFUSED", "INVALID_PARAMS", "PERMISSION", "NOT_INSTALLED"}
"""Errors after which all is as it was; after others, such as a timeout, it may not be."""


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                },
            },
            "exclusive": {"type": "bool", "default": False},
            "folder": {"type": "path", "default": "/etc/licagent/policy.d"},
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )
    wanted: dict[str, str] = {}
    for file in module.params["files"]:
        name = str(file["name"])
        if Path(name).name != name or not name.endswith(".toml"):
            module.fail_json(msg=f"{name!r} is not the name of a policy file: use NAME.toml")
        if name in wanted:
            module.fail_json(msg=f"{name} is given twice")
        wanted[name] = str(file["content"])
    try:
        module.exit_json(**_apply(module, wanted))
    except CommandFailed as failure:
        if module.check_mode or failure.code in _NOTHING_DONE:
            module.fail_json(msg=f"the policy is refused, nothing was changed: {failure}")
        module.fail_json(
            msg=f"whether the policy is in force is not known, so run this again: {failure}"
        )


def _apply(module: AnsibleModule, wanted: dict[str, str]) -> dict[str, Any]:
    folder = Path(module.params["folder"])
    agent = Agent(module)
    surplus: list[str] = []
    gone: list[str] = []
    if module.params["exclusive"]:
        surplus = _surplus(folder, wanted)
        gone = sorted(_in_force(agent).difference(wanted, surplus))
    # A file goes by becoming empty, for the daemon takes files, and the names of none to leave out;
    # once that is in force, it is removed. A run that ends in between leaves an empty file, which
    # the next one removes.
    asked = wanted | dict.fromkeys(surplus, "")
    before = {name: _text(folder / name) for name in asked}
    differing = [name for name, text in asked.items() if name in surplus or before[name] != text]
    result: dict[str, Any] = {
        "changed": bool(differing or gone),
        "diff": [
            *(_diff(folder / name, before[name] or "", asked[name]) for name in differing),
            *(_diff(folder / name, "in force without this file\n", "") for name in gone),
        ],
    }
    if not result["changed"]:
        return result
    # By their names, as the daemon will have them: a file of the same name is replaced by it.
    with TemporaryDirectory(dir=module.tmpdir) as place:
        paths = []
        # In this order they are written: where the daemon ends amidst it, what moves from one file
        # to another is in both of them, which the next start refuses, and not in none.
        for name, text in asked.items():
            path = Path(place) / name
            path.write_text(text, encoding="utf-8")
            paths.append(str(path))
        try:
            if module.check_mode:
                agent.ask("policy", "check", "--installed", *paths)
                return result
            _, answer = agent.ask("policy", "apply", *paths)
        except FileNotFoundError:
            if not module.check_mode:
                raise CommandFailed(127, "NOT_INSTALLED", "licagent is not installed", "") from None
            return result
    result["generation"] = answer.get("generation")
    for name in surplus:
        (folder / name).unlink(missing_ok=True)
    if surplus:
        # Nothing in the kernel hangs on this: the daemon would go on naming the empty files, in
        # `licagent status` and in its last good policy.
        try:
            agent.ask("policy", "apply")
        except CommandFailed as failure:
            names = ", ".join(surplus)
            module.fail_json(
                msg=f"the policy is in force and {names} removed, of which licagent has yet to"
                f" learn, so run this again: {failure}",
                **result,
            )
    return result


def _diff(path: Path, before: str, after: str) -> dict[str, str]:
    return {
        "before_header": str(path),
        "after_header": str(path),
        "before": before,
        "after": after,
    }


def _surplus(folder: Path, wanted: Collection[str]) -> list[str]:
    """Policy files that are there and not wanted, as the agent finds them."""
    there = (path.name for path in folder.glob("*.toml") if not path.name.startswith("."))
    return sorted(name for name in there if name not in wanted)


def _in_force(agent: Agent) -> set[str]:
    """The files that the daemon goes by; none where it does not run: it starts by the folder."""
    answer = installed(agent, ("status",))
    return set(answer[1]["policy"]["files"]) if answer else set()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


if __name__ == "__main__":
    main()
