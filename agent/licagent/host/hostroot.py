# SPDX-License-Identifier: Apache-2.0
"""Paths as the host has them, where the service manager gave the daemon a /tmp of its own.

The daemon's unit has PrivateTmp=yes. A program in the host's /tmp is looked up from process 1's
root (/proc/1/root; needs the right to ptrace it), which is the host's whatever the daemon sees.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Final

from licagent.host.mounts import parse_mountinfo

HOST_ROOT: Final = "/proc/1/root"
_PRIVATE: Final = "/systemd-private-"
"""In the name of the folder that systemd mounts over /tmp and /var/tmp (systemd.exec(5))."""
_LINKS_MAX: Final = 40  # MAXSYMLINKS of the kernel


@functools.cache
def hidden_folders(mountinfo: Path = Path("/proc/self/mountinfo")) -> tuple[str, ...]:
    """The folders of the host in whose place this process has its own."""
    text = mountinfo.read_text(encoding="utf-8", errors="surrogateescape")
    return tuple(mount.point for mount in parse_mountinfo(text) if _PRIVATE in f"{mount.root}/")


def as_host_sees(path: str | Path) -> str:
    """Where to open an absolute path of the host: itself, but for what is hidden."""
    text = str(path)
    for folder in hidden_folders():
        if text == folder or text.startswith(f"{folder}/"):
            return HOST_ROOT + text
    return text


def real_path(path: str | Path) -> str:
    """`os.path.realpath`, by the links of the host also where its folder is hidden."""
    resolved = os.path.realpath(path)
    for _ in range(_LINKS_MAX):
        seen = as_host_sees(resolved)
        if seen == resolved:
            break
        try:
            target = os.readlink(seen)
        except OSError:  # no link, or nothing there
            break
        resolved = os.path.realpath(f"{os.path.dirname(resolved)}/{target}")  # noqa: PTH120
        if target.startswith("/"):
            resolved = os.path.realpath(target)
    return resolved
