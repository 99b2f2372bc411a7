# SPDX-License-Identifier: Apache-2.0
"""Taking enforcement away without a daemon."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from licagent.daemon import run_scopes
from licagent.domain.config import AgentConfig
from licagent.host.cgroups import CgroupError, find_mount
from licagent.kernel import libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord


def main(config: AgentConfig) -> dict[str, Any]:
    """Remove all of our pins; what was attached by them. Idempotent.

    Raises:
        PermissionError: not root.
    """
    if os.geteuid() != 0:
        raise PermissionError("only root may detach")
    pins = PinFolder(config.bpffs_dir)
    rows = []
    if pins.links.is_dir():
        for pin in sorted(pins.links.iterdir()):
            fd = libbpf.open_pin(pin)
            try:
                rows.append({"hook": pin.name, "link_id": libbpf.link_info(fd).id})
            finally:
                os.close(fd)
    lost = _lost(pins)
    pins.remove()
    with contextlib.suppress(CgroupError):  # cgroup v2 is mounted no more: nothing is in it
        run_scopes.remove(config.cgroup_root or find_mount())
    return {"changed": bool(rows), "detached": rows, "usage_lost": lost or None}


def _lost(pins: PinFolder) -> str:
    """Why the usage that is still in the kernel goes with the pins; "" if there is none."""
    try:
        control = ControlWord(pins)
    except (OSError, ValueError):
        return ""  # of another version, or none at all
    try:
        return "no daemon was there to commit it" if control.sheet else ""
    finally:
        control.close()
