# SPDX-License-Identifier: Apache-2.0
"""Inventory of the hosts that have joined a control plane."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible.utils.unsafe_proxy import wrap_var

DOCUMENTATION = r"""
name: hosts
short_description: The hosts of a licagent control plane
description:
  - Lists hosts by C(licplane host list), on the control plane's own machine or, with O(server),
    from anywhere.
  - Each host has the variables C(licagent_host_id), C(licagent_hostname), C(licagent_status),
    C(licagent_labels), C(licagent_is_connected), C(licagent_lag) and C(licagent_drift).
  - A host's name is what it calls itself, if that is a host name, no other host has it and the
    inventory does not know it yet; else it is its id, and C(licagent_hostname) is empty. Hosts
    choose their names themselves, so a name alone is no proof of which machine answers to it.
  - All are in the group O(group); further groups are made by C(groups) and C(keyed_groups). Labels
    that are no plain words, as the control plane makes none, are left out.
  - Nothing that the control plane says is ever a template.
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


_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", re.ASCII)
"""Never with a dash first: the name becomes an argument of ssh."""
_ADDRESS = re.compile(r"[0-9.]+|localhost(\..*)?", re.ASCII | re.IGNORECASE)
"""What would lead to an address of the host's choice, or back to the controller."""
_LABEL_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
_LABEL_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)


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
        listed = [one for one in self._listed() if one["status"] in self.get_option("statuses")]
        known = {name.lower() for name in (*self.inventory.hosts, *self.inventory.groups)}
        hostnames = _hostnames(listed, known)
        for one in listed:
            name = hostnames.get(one["host_id"]) or str(one["host_id"])
            variables = wrap_var(_variables(one, hostnames.get(one["host_id"], "")))
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

    def _compose(self, *arguments: Any, **options: Any) -> Any:
        """As the base, and what is made of a host's words is no template either."""
        return wrap_var(super()._compose(*arguments, **options))

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


def _hostnames(listed: list[dict[str, Any]], known: set[str]) -> dict[str, str]:
    """By host id, the names that may be used. Raises AnsibleParserError for an id that is none."""
    for one in listed:
        if not _NAME.fullmatch(str(one["host_id"])):
            raise AnsibleParserError(f"licplane host list: {one['host_id']!r} is no host id")
    claims = Counter(str(one["hostname"]).lower() for one in listed)
    taken = known | {str(one["host_id"]).lower() for one in listed}

    def is_usable(name: str) -> bool:
        is_name = _NAME.fullmatch(name) is not None and _ADDRESS.fullmatch(name) is None
        return is_name and claims[name.lower()] == 1 and name.lower() not in taken

    return {one["host_id"]: one["hostname"] for one in listed if is_usable(str(one["hostname"]))}


def _plain(labels: dict[str, Any]) -> dict[str, Any]:
    """Those that may name a group, and be part of an address."""
    return {
        name: value
        for name, value in labels.items()
        if _LABEL_NAME.fullmatch(name) and _LABEL_VALUE.fullmatch(str(value))
    }


def _variables(one: dict[str, Any], hostname: str) -> dict[str, Any]:
    return {
        "licagent_host_id": one["host_id"],
        "licagent_hostname": hostname,
        "licagent_status": one["status"],
        "licagent_labels": _plain(one["labels"]),
        "licagent_is_connected": one["connected"],
        "licagent_lag": one["lag"],
        "licagent_drift": one["drift"],
    }
