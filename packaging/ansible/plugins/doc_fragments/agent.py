# SPDX-License-Identifier: Apache-2.0
"""What the documentation of every module has: the options of ARGUMENTS (agent_command)."""

from __future__ import annotations


class ModuleDocFragment:
    """Found by its name; see Ansible's developer guide on documentation fragments."""

    DOCUMENTATION = r"""
options:
  executable:
    description: Where licagent is.
    type: path
    default: /usr/bin/licagent
  config:
    description: Its settings file, if not /etc/licagent/agent.toml.
    type: path
author: The licagent developers
"""

    READS_ONLY = r"""
attributes:
  check_mode:
    description: Does the same; it changes nothing.
    support: full
"""
