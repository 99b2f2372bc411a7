# SPDX-License-Identifier: Apache-2.0
"""The folder that a distribution's tool builds from: the project's files and the locked wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Final

import inputs
from environment import ENVIRONMENTS

_SPDX: Final = "# SPDX-License-Identifier: Apache-2.0\n"


def sources(root: Path, folder: Path) -> None:
    """Copy the project's files into the empty `folder`."""
    for path in inputs.project_files(root):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target)
        target.chmod(0o755 if os.access(root / path, os.X_OK) else 0o644)


def wheels(root: Path, folder: Path) -> None:
    """Bring every wheel that the lock files name into `folder`; those that are there stay.

    They are asked for by hash, and by the tags that the oldest C library of the supported
    distributions takes (glibc 2.34: RHEL 9; Debian 12 has 2.36).

    Raises:
        subprocess.CalledProcessError: one cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 16, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq"]
    command += ["download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
    command += ["--abi", "abi3", "--abi", "none"]
    for platform in platforms:
        command += ["--platform", platform]
    # The control plane's lock holds the agent's: ./dev lock makes the second within the first.
    lock = root / "requirements" / "run.txt"
    subprocess.run([*command, "--dest", str(folder), "-r", str(lock)], check=True)


def debian(folder: Path, version: str) -> int:
    """Make folder/debian out of packaging/deb; the time of the changelog's entry, for the build.

    A version other than the changelog's gets an entry of its own, with the same time.
    """
    target = folder / "debian"
    shutil.copytree(folder / "packaging" / "deb", target)
    (target / "source").mkdir()
    (target / "source" / "format").write_text("3.0 (native)\n")
    changelog = target / "changelog"
    text = changelog.read_text().removeprefix(_SPDX)
    who, when = _newest_entry(text)
    if not text.startswith(f"licagent ({version}) "):
        text = (
            f"licagent ({version}) bookworm; urgency=medium\n\n  * Built as {version}.\n\n"
            f" -- {who}  {format_datetime(when)}\n\n{text}"
        )
    changelog.write_text(text)
    return int(when.timestamp())


def rpm(folder: Path, version: str) -> int:
    """Write what licagent.spec includes; the time of the newest changelog entry, for the build."""
    who, when = _newest_entry((folder / "packaging" / "deb" / "changelog").read_text())
    (folder / "changelog.inc").write_text(
        f"* {when.astimezone(UTC):%a %b %d %Y} {who} - {version}-1\n- Version {version}.\n"
    )
    for environment in ENVIRONMENTS.values():
        # Fedora's form: whoever looks for a library with a hole finds who carries it.
        lock = (folder / "requirements" / environment.requirements).read_text()
        (folder / f"bundled-{environment.name}.inc").write_text(
            "".join(
                f"Provides:       bundled(python3dist({name})) = {number}\n"
                for name, number in re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", lock, re.MULTILINE)
            )
        )
    return int(when.timestamp())


def _newest_entry(changelog: str) -> tuple[str, datetime]:
    """Who wrote the newest entry of a Debian changelog, and when."""
    found = re.search(r"^ -- (.*)  (.*)$", changelog, re.MULTILINE)
    if found is None:
        raise inputs.Refused("packaging/deb/changelog has no entry")
    return found[1], parsedate_to_datetime(found[2])
