# SPDX-License-Identifier: Apache-2.0
"""Puts policy files in force on a host, all of them or none."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.licagent.fleet.plugins.module_utils.agent_command import (
    ARGUMENTS,
    Agent,
    CommandFailed,
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
        the new ones come. What they protected is open then.
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
        module.fail_json(msg=f"the policy is refused, nothing was changed: {failure}")


def _apply(module: AnsibleModule, wanted: dict[str, str]) -> dict[str, Any]:
    folder = Path(module.params["folder"])
    before = {name: _text(folder / name) for name in wanted}
    differing = {name: text for name, text in wanted.items() if before[name] != text}
    surplus = _surplus(folder, wanted) if module.params["exclusive"] else []
    # The daemon takes whole files only, so a file goes by becoming empty; then it is removed. A run
    # that ends in between leaves an empty file, which the next one removes.
    before |= {name: _text(folder / name) for name in surplus}
    differing |= dict.fromkeys(surplus, "")
    result: dict[str, Any] = {
        "changed": bool(differing),
        "diff": [
            {
                "before_header": str(folder / name),
                "after_header": str(folder / name),
                "before": before[name] or "",
                "after": text,
            }
            for name, text in differing.items()
        ],
    }
    if not differing:
        return result
    agent = Agent(module)
    # By their names, as the daemon will have them: a file of the same name is replaced by it.
    with TemporaryDirectory(dir=module.tmpdir) as place:
        paths = []
        for name, text in wanted.items():
            path = Path(place) / name
            path.write_text(text, encoding="utf-8")
            paths.append(str(path))
        try:
            if module.check_mode:
                agent.ask("policy", "check", "--installed", *paths)
            else:
                _, answer = agent.ask("policy", "apply", *paths)
                if surplus:
                    for name in surplus:
                        (folder / name).unlink(missing_ok=True)
                    _, answer = agent.ask("policy", "apply")
                result["generation"] = answer.get("generation")
        except FileNotFoundError:
            if not module.check_mode:
                raise CommandFailed(127, "", "licagent is not installed", "") from None
    return result


def _surplus(folder: Path, wanted: Container[str]) -> list[str]:
    """Policy files that are there and not wanted, as the agent finds them."""
    there = (path.name for path in folder.glob("*.toml") if not path.name.startswith("."))
    return sorted(name for name in there if name not in wanted)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


if __name__ == "__main__":
    main()
