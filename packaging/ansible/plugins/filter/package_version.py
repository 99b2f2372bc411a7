# SPDX-License-Identifier: Apache-2.0
"""Reads the version that the name of a package file says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: package_version
short_description: The version that the name of a package file says
description:
  - Of a name as dpkg gives it (NAME_VERSION_ARCHITECTURE.deb), or rpm
    (NAME-VERSION-RELEASE.ARCHITECTURE.rpm), without the distribution's revision. Empty where the
    name has another form.
options:
  _input:
    description: The file's name, or its path.
    type: str
    required: true
author: The licagent developers
"""

EXAMPLES = r"""
- name: Show the version
  ansible.builtin.debug:
    msg: "{{ 'dist/licagent-0.1.0-1.x86_64.rpm' | licagent.fleet.package_version }}"
"""

RETURN = r"""
_value:
  description: The version, such as 0.1.0.
  type: str
"""

_VERSION: Final = r"[0-9][0-9A-Za-z.+~]*"
_DEB: Final = re.compile(rf"[a-z0-9][a-z0-9.+-]*_({_VERSION})(?:-[^_]+)?_[a-z0-9-]+\.deb")
# x86_64 has the character that parts name and version in the other family.
_RPM: Final = re.compile(rf"[A-Za-z0-9._+-]+-({_VERSION})-[^-]+\.[a-z0-9_]+\.rpm")


def package_version(name: str) -> str:
    """The version in the name of a .deb or .rpm, without revision or release; "" if it has none."""
    if not isinstance(name, str):
        raise AnsibleFilterError(f"package_version takes a text, not {type(name).__name__}")
    base = name.rpartition("/")[2]
    found = _DEB.fullmatch(base) or _RPM.fullmatch(base)
    return found[1] if found else ""


class FilterModule:
    """Where Ansible finds the filter."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """The filters of this file, by name."""
        return {"package_version": package_version}
