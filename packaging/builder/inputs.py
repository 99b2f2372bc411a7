# SPDX-License-Identifier: Apache-2.0
"""What the packages are made from: the project's files, its version, and their fingerprint."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

_PLACES: Final = (
    "agent",
    "bpf",
    "controlplane",
    "packaging/builder",
    "packaging/completions",
    "packaging/deb",
    "packaging/etc",
    "packaging/man",
    "packaging/rpm/licagent.spec",
    "proto",
    "requirements/agent.txt",
    "requirements/run.txt",
    "systemd",
    "token",
    "CHANGELOG.md",
    "LICENSE",
    "LICENSES",
    "README.md",
    "docs/*.json",
    "docs/*.md",
    "docs/*.svg",
    "pyproject.toml",
    # What the pages link to outside of docs/.
    "STYLE.md",
    "packaging/README.md",
    "packaging/ansible/*.md",
    "packaging/grafana",
    "packaging/prometheus",
    "tests/bench/README.md",
    "tests/vm/README.md",
    "vagrant/README.md",
    "vagrant/catalog.yml",
)
"""Folders and files, from the clone's root, that anything of them goes into a package."""


class Refused(Exception):
    """The packages cannot be built as asked; the text says why."""


def project_version(root: Path) -> str:
    """The version in pyproject.toml."""
    with (root / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def checked_version(version: str) -> str:
    """`version`, if Debian, RPM and Python all take it and sort it the same way.

    Raises:
        Refused: it is not two to four numbers with dots between them.
    """
    if not re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){1,3}", version):
        raise Refused(f"version {version!r}: two to four numbers with dots between, such as 0.1.0")
    return version


def project_files(root: Path) -> list[Path]:
    """The files that go in, relative to `root`: in git, or new and not ignored; sorted."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_PLACES],
        cwd=root,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    names = sorted({name.decode() for name in listed.split(b"\0") if name})
    return [Path(name) for name in names if (root / name).is_file()]


def fingerprint(root: Path, *parts: str) -> str:
    """A digest over content, name and mode of all inputs, and over `parts`."""
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in project_files(root):
        file = root / path
        executable = file.stat().st_mode & 0o111 != 0
        digest.update(f"\0{path}\0{executable}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
