# SPDX-License-Identifier: Apache-2.0
"""An ext4 with user and project quota on a loop device, and what quota's own tools say of it."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

KIB: Final = 1024


class NoQuota(Exception):
    """This kernel mounts no ext4 with quota."""


@contextlib.contextmanager
def mounted(*, quota: bool, megabytes: int = 64) -> Iterator[Path]:
    """A new ext4, mounted for the block's time. NoQuota where the kernel refuses quota."""
    folder = Path(tempfile.mkdtemp(prefix="licagent-quota-"))
    with contextlib.ExitStack() as held:
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        image, path = folder / "image", folder / "mounted"
        path.mkdir()
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        features = ["-O", "project,quota", "-E", "quotatype=usrquota:prjquota"] if quota else []
        _run("mkfs.ext4", "-q", "-I", "256", *features, str(image))
        options = "loop,usrquota,prjquota" if quota else "loop"
        done = subprocess.run(
            ["mount", "-o", options, str(image), str(path)], capture_output=True, check=False
        )
        if done.returncode:
            if quota:
                raise NoQuota("the kernel lacks CONFIG_QFMT_V2: it mounts no ext4 with quota")
            done.check_returncode()
        held.callback(_run, "umount", str(path))
        yield path


def set_project(path: Path, project: int) -> None:
    """Give a folder a project id that everything made in it inherits."""
    _run("chattr", "+P", "-p", str(project), str(path))


def reported(path: Path, kind: str) -> dict[int, tuple[int, int]]:
    """Bytes and inodes by id, as repquota(8) says; `kind` is -u or -P."""
    _run("sync", "--file-system", str(path))
    done = subprocess.run(
        ["repquota", kind, "-v", "-n", "-p", str(path)], capture_output=True, text=True, check=True
    )
    found = {}
    for line in done.stdout.splitlines():
        words = re.match(r"#(\d+)\s+\S+\s+(\d+)\s+\d+\s+\d+\s+\d+\s+(\d+)", line)
        if words:
            found[int(words[1])] = (int(words[2]) * KIB, int(words[3]))
    return found


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
