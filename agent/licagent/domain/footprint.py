# SPDX-License-Identifier: Apache-2.0
"""What storage footprints are measured: the `[[footprint]]` sections of the configuration. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

EVERY: Final = "*"
"""As `user` or `project`: each one that holds anything gets a line of its own."""

LARGEST_PROJECT: Final = 0xFFFF_FFFE
"""Project ids are 32 bit; the last one means "none" (include/linux/projid.h)."""


class FootprintKind(StrEnum):
    """Whose bytes are counted."""

    PATH = "path"
    """A folder with everything below it."""
    USER = "user"
    """What one user owns on a filesystem."""
    PROJECT = "project"
    """What has one project id on a filesystem (ext4, XFS, f2fs)."""


@dataclass(frozen=True, slots=True)
class FootprintSpec:
    """One footprint to measure."""

    name: str
    """Unique; it is in the records and in baselines, so a new name is a new footprint."""
    path: str
    """Absolute. The folder of PATH; of USER and PROJECT any folder on the filesystem: with quota
    on, all of the filesystem counts, without quota what is below this folder."""
    user: str = ""
    """Name, number or "*": makes it a footprint of USER."""
    project: str = ""
    """Number or "*": makes it one of PROJECT."""
    resource: str = ""
    """The storage resource of the policy that it is a use of; "" for none."""
    every_s: int = 300
    """Seconds between two measurements, 5 to 86,400."""
    limit_s: int = 600
    """A walk that takes longer is ended, and its last size goes on, marked estimated."""
    cross_devices: bool = False
    """Whether a walk enters filesystems that are mounted below `path`."""

    @property
    def kind(self) -> FootprintKind:
        """By what it is measured."""
        if self.project:
            return FootprintKind.PROJECT
        return FootprintKind.USER if self.user else FootprintKind.PATH


def fault_of(spec: FootprintSpec) -> str:
    """What is wrong with a spec, in words that follow "footprint NAME: "; "" if nothing is."""
    if not spec.name or len(spec.name) > 64 or not spec.name.isprintable():
        return "name must have 1 to 64 printable characters"
    if not spec.path.startswith("/") or "\0" in spec.path or ".." in spec.path.split("/"):
        return f"path {spec.path!r} must be absolute and without .."
    if spec.user and spec.project:
        return "user and project exclude each other"
    if spec.user and spec.user.isdecimal() and int(spec.user) >= 0xFFFF_FFFF:
        return f"user {spec.user} is no user id"
    if spec.project not in ("", EVERY) and not (
        spec.project.isdecimal() and int(spec.project) <= LARGEST_PROJECT
    ):
        return f'project {spec.project!r} must be a number up to {LARGEST_PROJECT}, or "*"'
    if not 5 <= spec.every_s <= 86_400:
        return "every_s must be 5 to 86400"
    if not 1 <= spec.limit_s <= 86_400:
        return "limit_s must be 1 to 86400"
    return ""
