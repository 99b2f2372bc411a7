# SPDX-License-Identifier: Apache-2.0
"""Writes settings as TOML, so that inventories hold them as plain YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: to_toml
short_description: Write a mapping as TOML
description:
  - Writes each key of the mapping on a line of its own. Tables and lists inside are written inline.
options:
  _input:
    description: The mapping.
    type: dict
    required: true
author: The licagent developers
"""

EXAMPLES = r"""
- name: Show settings as the agent reads them
  ansible.builtin.debug:
    msg: "{{ {'mode': 'enforce', 'labels': {'region': 'eu-1'}} | licagent.fleet.to_toml }}"
"""

RETURN = r"""
_value:
  description: The text, with a line break at its end.
  type: str
"""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(settings: Mapping[str, Any]) -> str:
    """The mapping as TOML, one key a line, in its order. Keys without a value are left out.

    Raises AnsibleFilterError for what TOML has no form for.
    """
    if not isinstance(settings, Mapping):
        raise AnsibleFilterError(f"to_toml takes a mapping, not {type(settings).__name__}")
    lines = [
        f"{_key(name)} = {_value(value, str(name))}\n"
        for name, value in settings.items()
        if value is not None
    ]
    return "".join(lines)


def _key(name: object) -> str:
    text = str(name)
    return text if _BARE.fullmatch(text) else _text(text)


def _value(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        pairs = [
            f"{_key(name)} = {_value(inner, f'{where}.{name}')}"
            for name, inner in value.items()
            if inner is not None
        ]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(one, where) for one in value)}]"
    raise AnsibleFilterError(f"to_toml: {where} is a {type(value).__name__}, which TOML lacks")


def _text(text: str) -> str:
    # JSON's strings are TOML's basic strings, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class FilterModule:
    """Where Ansible finds the filter."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """The filters of this file, by name."""
        return {"to_toml": to_toml}
