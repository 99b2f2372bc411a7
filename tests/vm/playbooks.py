# SPDX-License-Identifier: Apache-2.0
"""Runs Ansible, of its own environment, against machines of a test, and reads how it went."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.vm.machine import Machine

ROOT: Final = Path(__file__).resolve().parents[2]
ANSIBLE: Final = ROOT / "build" / "ansible"
"""Made by `./dev ansible-setup`."""
_RECAP: Final = re.compile(r"^(\S+)\s*:\s*((?:\w+=\d+\s*)+)$", re.MULTILINE)
_RUN_S: Final = 1500


@dataclass(frozen=True, slots=True)
class Played:
    """How a playbook went."""

    status: int
    output: str
    hosts: Mapping[str, Mapping[str, int]]
    """Of each host that had a part in it: ok, changed, unreachable, failed, skipped, rescued."""

    def changed(self, host: str) -> int:
        """How many tasks changed something there."""
        return self.hosts[host]["changed"]


@dataclass(frozen=True, slots=True)
class Controller:
    """Where Ansible runs: a folder with an inventory, and settings that reach the machines."""

    folder: Path
    collections: Path
    hosts: Mapping[str, Machine]
    """By their names in the inventory."""
    groups: Mapping[str, Sequence[str]]

    def play(
        self, name: str, variables: Mapping[str, Any], extra: Mapping[str, Any], *options: str
    ) -> Played:
        """Run a playbook of the collection. It may fail: see `status`.

        `variables` stand in the inventory, `extra` on the command line, where they win over all.
        """
        inventory = {
            "all": {
                "vars": dict(variables),
                "hosts": {host: _reach(machine) for host, machine in self.hosts.items()},
                "children": {
                    group: {"hosts": dict.fromkeys(names)} for group, names in self.groups.items()
                },
            }
        }
        (self.folder / "hosts.json").write_text(json.dumps(inventory))
        command = ["ansible-playbook", "-i", "hosts.json", f"licagent.fleet.{name}"]
        done = self.run([*command, "-e", json.dumps(dict(extra)), *options])
        output = done.stdout + done.stderr
        recap = done.stdout.rpartition("PLAY RECAP")[2]
        return Played(
            done.returncode,
            output,
            {
                host: {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", counts)}
                for host, counts in _RECAP.findall(recap)
            },
        )

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """A command of Ansible's environment, in the controller's folder."""
        environment = {
            **os.environ,
            "PATH": f"{ANSIBLE / 'bin'}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "0",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_TIMEOUT": "60",
        }
        for key in [each for each in environment if each.startswith(("LICPLANE_", "LICAGENT_"))]:
            del environment[key]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_RUN_S,
        )


def _reach(machine: Machine) -> dict[str, Any]:
    return {
        "ansible_host": "127.0.0.1",
        "ansible_port": machine.ssh_port,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(machine.ssh_key),
        "ansible_ssh_common_args": "-F none -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
