# SPDX-License-Identifier: Apache-2.0
"""Paths as the host has them, where the service manager gave the daemon a /tmp of its own.

The daemon's unit has PrivateTmp=yes. A program in the host's /tmp is looked up from process 1's
root (/proc/1/root; needs the right to ptrace it), which is the host's whatever the daemon sees.
"""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path
from typing import Final

from licagent.host.mounts import parse_mountinfo

HOST_ROOT: Final = "/proc/1/root"
_PRIVATE: Final = "/systemd-private-"
"""In the name of the folder that systemd mounts over /tmp and /var/tmp (systemd.exec(5))."""
LINKS_MAX: Final = 40  # MAXSYMLINKS of the kernel


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
    """An absolute path without links, by those of the host also where its folder is hidden.

    The file, or its folder, need not exist. Not os.path.realpath: that one calls itself for each
    link of a chain (in Python 3.11), and a user may lay a chain of any length. Raises OSError
    (ELOOP) for more links than the kernel follows, and ValueError for a NUL byte.
    """
    done = ""
    text = str(path)
    left = (text if text.startswith("/") else f"{Path.cwd()}/{text}").split("/")[::-1]
    links = 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done = done.rpartition("/")[0]
            continue
        try:
            target = os.readlink(as_host_sees(f"{done}/{name}"))
        except OSError:  # no link, or nothing there
            done = f"{done}/{name}"
            continue
        links += 1
        if links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        if target.startswith("/"):
            done = ""
        left += target.split("/")[::-1]
    return done or "/"
