# SPDX-License-Identifier: Apache-2.0
"""Sets the mode in the text of an agent.toml, and leaves all else as it is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any, Final

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: with_mode
short_description: Set the mode in the text of an agent.toml
description:
  - Changes the value of the key C(mode) that belongs to no table, or adds the key before the first
    table. Every other line stays as it is, comments too.
  - The result is read again, and has to differ in the mode alone.
options:
  _input:
    description: The text of the file.
    type: str
    required: true
  mode:
    description: The mode to have. Left out, the text stays as it is.
    type: str
    choices: ["", observe, enforce]
    default: ""
author: The licagent developers
"""

EXAMPLES = r"""
- name: Show the settings in the other mode
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', 'agent.toml') | licagent.fleet.with_mode('enforce') }}"
"""

RETURN = r"""
_value:
  description: The text, with this mode.
  type: str
"""

_KEY: Final = re.compile(r"""(\s*(?:mode|"mode"|'mode')\s*=\s*)("[^"]*"|'[^']*')(.*)""", re.DOTALL)


def with_mode(text: str, mode: str = "") -> str:
    """The text of an agent.toml with this mode. AnsibleFilterError for what is no TOML."""
    before = _parsed(text)
    if not mode or before.get("mode") == mode:
        return text
    # Lines that look like the key may stand in a table or in a text of several lines, so what was
    # meant is what reads as the same settings in another mode.
    for candidate in _candidates(text, mode):
        try:
            if tomllib.loads(candidate) == {**before, "mode": mode}:
                return candidate
        except tomllib.TOMLDecodeError:
            continue
    raise AnsibleFilterError("with_mode: the mode is written in a way that cannot be edited")


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AnsibleFilterError(f"with_mode: the settings are no TOML: {error}") from error


def _candidates(text: str, mode: str) -> Iterator[str]:
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if found := _KEY.fullmatch(line):
            edited = f'{found[1]}"{mode}"{found[3]}'
            yield "\n".join([*lines[:number], edited, *lines[number + 1 :]])
    ending = "\r" if lines[0].endswith("\r") else ""
    added = f'mode = "{mode}"{ending}'
    # Below the comments that a file begins with, which are about all of it.
    head = next((at for at, line in enumerate(lines) if not line.startswith("#")), 0)
    for at in (head, 0):
        yield "\n".join([*lines[:at], added, *lines[at:]])


class FilterModule:
    """Where Ansible finds the filter."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """The filters of this file, by name."""
        return {"with_mode": with_mode}
