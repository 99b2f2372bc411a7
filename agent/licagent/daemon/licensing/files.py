# SPDX-License-Identifier: Apache-2.0
"""License files: what was read and verified, what was refused and why, writing them durably."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from licagent.store.licenses import LicenseNotAccepted
from lictoken.claims import License
from lictoken.errors import TokenError


@dataclass(frozen=True, slots=True)
class Held:
    """A license that verified, and where it came from."""

    license: License
    file: Path | None  # None: delivered by the control plane
    text: bytes

    @property
    def managed(self) -> bool:
        """Whether the control plane delivered it: such a license grants while it is leased."""
        return self.file is None

    @property
    def origin(self) -> str:
        """Its file, or who delivered it."""
        return "control plane" if self.file is None else str(self.file)


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is no license here, and why."""

    file: str
    reason: str  # the refusal's name
    detail: str
    hint: str


def files_in(folder: Path, suffix: str) -> Iterator[Path]:
    """The files of a folder that end so, hidden ones aside, by name; none without the folder."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(suffix) and not name.startswith("."):
            yield folder / name


def refusal_of(name: str, error: Exception) -> Refused:
    """A refused file as status and errors name it."""
    if isinstance(error, TokenError):
        return Refused(name, str(error.refusal), str(error.detail), str(error.next_step))
    if isinstance(error, LicenseNotAccepted):
        return Refused(name, error.refusal, str(error), "")
    return Refused(name, type(error).__name__, str(error), "")


def file_name(jti: str) -> str:
    """A file name for a license id: what is not plain is written as %XX."""
    return "".join(
        character
        if character.isascii() and (character.isalnum() or character in "-_.")
        else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in jti
    ).lstrip(".")[:200]


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)  # half of it takes room that is short
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
