# SPDX-License-Identifier: Apache-2.0
"""Reads the mode that the text of an agent.toml says."""

from __future__ import annotations

import tomllib
from collections.abc import Callable

DOCUMENTATION = r"""
name: mode_of
short_description: The mode that the text of an agent.toml says
description:
  - Reads the key C(mode) and nothing else, so also of settings that licagent refuses. Empty where
    the text has no such key, or is no TOML.
options:
  _input:
    description: The text of the file.
    type: str
    required: true
author: The licagent developers
"""

EXAMPLES = r"""
- name: Show the mode
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', 'agent.toml') | licagent.fleet.mode_of }}"
"""

RETURN = r"""
_value:
  description: C(observe), C(enforce) or nothing.
  type: str
"""


def mode_of(text: str) -> str:
    """The mode that the text of an agent.toml says; "" where it says none or is no TOML."""
    try:
        found = tomllib.loads(text).get("mode")
    except tomllib.TOMLDecodeError:
        return ""
    return found if found in ("observe", "enforce") else ""


class FilterModule:
    """Where Ansible finds the filter."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """The filters of this file, by name."""
        return {"mode_of": mode_of}
