# SPDX-License-Identifier: Apache-2.0
"""Inventory of the hosts that have joined a control plane."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable

DOCUMENTATION = r"""
name: hosts
short_description: The hosts of a licagent control plane
description:
  - Lists hosts by C(licplane host list), on the control plane's own machine or, with O(server),
    from anywhere.
  - Each host has the variables C(licagent_host_id), C(licagent_hostname), C(licagent_status),
    C(licagent_labels), C(licagent_is_connected), C(licagent_lag) and C(licagent_drift).
  - All are in the group O(group); further groups are made by C(groups) and C(keyed_groups).
  - The configuration file's name ends in licagent.yml or licagent.yaml.
extends_documentation_fragment:
  - constructed
options:
  plugin:
    description: Names this plugin.
    type: str
    required: true
    choices: [licagent.fleet.hosts]
  group:
    description: The group that holds every host.
    type: str
    default: licagent
  command:
    description: How licplane is started; a list, such as C([ssh, plane, licplane]).
    type: list
    elements: str
    default: [licplane]
  server:
    description: Address of a running licplane, HOST:PORT.
    type: str
    env:
      - name: LICPLANE_SERVER
  identity:
    description: With O(server), the file of a client certificate (role auditor is enough).
    type: str
    env:
      - name: LICPLANE_IDENTITY
  token_file:
    description: With O(server), the file of a bearer token in place of O(identity).
    type: str
    env:
      - name: LICPLANE_TOKEN_FILE
  state:
    description: Without O(server), the state folder of licplane.
    type: str
  labels:
    description: Only hosts with all these labels.
    type: dict
    default: {}
  statuses:
    description: Only hosts with one of these statuses; banned and evicted ones are left out.
    type: list
    elements: str
    default: [active, draining, cloned]
  timeout_s:
    description: Seconds that licplane may take.
    type: int
    default: 60
author: The licagent developers
"""

EXAMPLES = r"""
# fleet.licagent.yml
plugin: licagent.fleet.hosts
server: plane.example.net:8443
identity: auditor.pem
compose:
  ansible_host: licagent_hostname ~ ".example.net"
keyed_groups:
  - key: licagent_labels.environment
    prefix: environment
groups:
  drifted: licagent_drift | length > 0
"""


class InventoryModule(BaseInventoryPlugin, Constructable):  # type: ignore[misc]
    """Reads the fleet's hosts once a run: what a cache said yesterday may be evicted today."""

    NAME = "licagent.fleet.hosts"

    def verify_file(self, path: str) -> bool:
        """Whether the file is for this plugin, by its name."""
        mine = path.endswith(("licagent.yml", "licagent.yaml"))
        return mine and bool(super().verify_file(path))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill the inventory. Raises AnsibleParserError when licplane does not answer."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        group = self.inventory.add_group(self.get_option("group"))
        strict = self.get_option("strict")
        names: set[str] = set()
        for one in self._listed():
            if one["status"] not in self.get_option("statuses"):
                continue
            variables = _variables(one)
            # A name that two machines give themselves names neither.
            name = str(one["hostname"] or one["host_id"])
            name = str(one["host_id"]) if name in names else name
            names.add(name)
            self.inventory.add_host(name, group=group)
            for key, value in variables.items():
                self.inventory.set_variable(name, key, value)
            self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
            self._add_host_to_composed_groups(
                self.get_option("groups"), variables, name, strict=strict
            )
            self._add_host_to_keyed_groups(
                self.get_option("keyed_groups"), variables, name, strict=strict
            )

    def _listed(self) -> list[dict[str, Any]]:
        command = [str(part) for part in self.get_option("command")]
        if self.get_option("server"):
            command += ["--server", self.get_option("server")]
            for option, name in (("identity", "--identity"), ("token_file", "--token-file")):
                if self.get_option(option):
                    command += [name, self.get_option(option)]
        elif self.get_option("state"):
            command += ["--state", self.get_option("state")]
        command += ["host", "list", "--json"]
        for name, value in self.get_option("labels").items():
            command += ["--label", f"{name}={value}"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=self.get_option("timeout_s"),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AnsibleParserError(f"{command[0]} cannot be asked for hosts: {error}") from error
        if done.returncode != 0:
            why = done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"
            raise AnsibleParserError(f"licplane host list: {why}")
        try:
            return list(json.loads(done.stdout)["hosts"])
        except (ValueError, KeyError) as error:
            raise AnsibleParserError(f"licplane host list: not its JSON: {error}") from error


def _variables(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "licagent_host_id": one["host_id"],
        "licagent_hostname": one["hostname"],
        "licagent_status": one["status"],
        "licagent_labels": one["labels"],
        "licagent_is_connected": one["connected"],
        "licagent_lag": one["lag"],
        "licagent_drift": one["drift"],
    }
