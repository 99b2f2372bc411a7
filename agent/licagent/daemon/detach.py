# SPDX-License-Identifier: Apache-2.0
"""Taking enforcement away without a daemon."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from licagent.daemon.policy import run_scopes
from licagent.daemon.settings_keeper import SettingsKeeper
from licagent.domain.config import AgentConfig
from licagent.host.cgroups import CgroupError, find_mount
from licagent.kernel import bpf_info, libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord

_LOADER_ENDS_S: Final = 60.0


def main(environment: Mapping[str, str], path: Path | None) -> dict[str, Any]:
    """Remove all of our pins; what was attached by them. Idempotent.

    By the settings that the daemon would start with: where those that are written are refused,
    the last good ones say where its pins are.

    Raises:
        PermissionError: not root.
        ConfigError: the settings are refused, and there are no last good ones.
        TimeoutError: a loader is at work and does not end.
    """
    if os.geteuid() != 0:
        raise PermissionError("only root may detach")
    config = SettingsKeeper(environment, path).choose().config
    pins = PinFolder(config.bpffs_dir)
    if not pins.root.is_dir():
        return _removed(config, pins)
    # Not under the hands of a loader that lost its daemon, which would pin the rest afterwards.
    with pins.alone(_LOADER_ENDS_S):
        return _removed(config, pins)


def _removed(config: AgentConfig, pins: PinFolder) -> dict[str, Any]:
    rows = []
    if pins.links.is_dir():
        for pin in sorted(pins.links.iterdir()):
            fd = libbpf.open_pin(pin)
            try:
                rows.append({"hook": pin.name, "link_id": bpf_info.link_info(fd).id})
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
