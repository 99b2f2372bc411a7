# SPDX-License-Identifier: Apache-2.0
"""Whether the root file system lies on encrypted disks, as the kernel tells it in sysfs.

A device-mapper device of dm-crypt has a UUID that begins with CRYPT- (cryptsetup's libdevmapper
prefix); LVM and RAID stand on their `slaves`. Encryption inside a drive or of single folders
cannot be seen here and does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from licagent.host.mounts import Mount, parse_mountinfo

_DEPTH_MAX: Final = 16
"""Deeper stacks of devices are nobody's; a loop in a made-up tree ends there."""


def root_is_encrypted(root: Path = Path("/")) -> bool | None:
    """Whether every device under the root file system is encrypted; None: it cannot be told.

    `root` is where /proc and /sys are looked for.
    """
    try:
        text = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    mounted = [mount for mount in parse_mountinfo(text) if mount.point == "/"]
    if not mounted:
        return None
    try:
        devices = list(_devices(root, mounted[-1]))  # the one on top
    except OSError:
        return None
    if not devices:
        return None
    answers = [_is_encrypted(device, _DEPTH_MAX) for device in devices]
    if None in answers:
        return None
    return all(answers)


def _devices(root: Path, mount: Mount) -> Iterator[Path]:
    """The block devices of a file system, in sysfs; none where it has none that can be found."""
    if mount.major:
        yield root / f"sys/dev/block/{mount.major}:{mount.minor}"
    elif mount.filesystem == "btrfs":
        # It has a device number of its own and may lie on several disks.
        own = Path(os.path.realpath(root / mount.source.lstrip("/"))).name
        for devices in sorted((root / "sys/fs/btrfs").glob("*/devices")):
            members = sorted(devices.iterdir())
            if own in {member.name for member in members}:
                yield from members


def _is_encrypted(device: Path, depth: int) -> bool | None:
    try:
        # A partition has no slaves of its own; its disk's count.
        device = device.resolve(strict=True)
        if (device / "partition").exists():
            device = device.parent
        if _text(device / "dm/uuid").startswith("CRYPT-"):
            return True
        slaves = sorted((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
        if not (device / "dev").exists() or not depth:
            return None
    except OSError:
        return None
    answers = [_is_encrypted(slave, depth - 1) for slave in slaves]
    if None in answers:
        return None
    return bool(answers) and all(answers)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
