# SPDX-License-Identifier: Apache-2.0
"""Digests of executables on disk, so that a restart of the daemon measures nothing again.

Only a cache: a file that is damaged, of another boot, or that others could have written is as
good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.host.executables import FileIdentity

_FORMAT: Final = "licagent.digests/2"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one version of a file."""

    sha256: str  # lower-case hex
    size_bytes: int
    owner: int  # uid


def read(path: Path, boot_id: str) -> list[tuple[FileIdentity, Known]]:
    """What was written in this boot; nothing of a file that is not to be believed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(file.fileno())
        # Whoever can write this file decides which program has which digest.
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            return []
        head, _, body = file.read().partition(b"\n")
    try:
        header = json.loads(head)
        checksum = hashlib.sha256(body.removesuffix(b"\n")).hexdigest()
        if (header["format"], header["boot_id"], header["sha256"]) != (_FORMAT, boot_id, checksum):
            return []
        return [
            (FileIdentity(device, inode, ctime_ns), Known(sha256, size_bytes, owner))
            for device, inode, ctime_ns, sha256, size_bytes, owner in json.loads(body)
        ]
    except (ValueError, KeyError, TypeError):
        return []


def write(path: Path, boot_id: str, known: Iterable[tuple[FileIdentity, Known]]) -> None:
    """Put a new file in the place of the old one. OSError when the disk refuses."""
    entries = [
        [at.device, at.inode, at.ctime_ns, each.sha256, each.size_bytes, each.owner]
        for at, each in known
    ]
    body = json.dumps(entries, separators=(",", ":"))
    checksum = hashlib.sha256(body.encode()).hexdigest()
    head = json.dumps({"format": _FORMAT, "boot_id": boot_id, "sha256": checksum})
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(f"{head}\n{body}\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
