# SPDX-License-Identifier: Apache-2.0
"""Agents and control planes of other versions: a real earlier revision, and other numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.programs import REPOSITORY
from tests.system.harness.controlplane import ControlPlane

BEFORE: Final = "d3e4888"
"""The last revision whose control plane did not look at versions; it calls itself 0.1.0."""
_PARTS: Final = ("agent", "token", "proto", "controlplane", "bpf")


def numbered(folder: Path, version: str) -> Path:
    """A folder that, first on the module path, makes an installation one of this version."""
    found = folder / f"version-{version}"
    metadata = found / f"licagent-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.4\nName: licagent\nVersion: {version}\n")
    return found


def earlier_revision(folder: Path) -> Path:
    """The tree of `BEFORE`, with its BPF objects built. Skips where the history lacks it."""
    git = ("git", "-C", str(REPOSITORY))
    known = subprocess.run([*git, "cat-file", "-e", f"{BEFORE}^{{commit}}"], check=False)
    if known.returncode:
        pytest.skip(f"this clone's history does not reach back to {BEFORE}")
    tree = folder / "earlier"
    tree.mkdir()
    archive = subprocess.run([*git, "archive", BEFORE, *_PARTS], check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    subprocess.run(["make", "-s", "-C", str(tree / "bpf")], check=True, stdout=subprocess.DEVNULL)
    return tree


def module_path(tree: Path) -> str:
    """The module path that puts a tree's packages before the installed ones."""
    return ":".join(str(tree / part) for part in ("agent", "token", "proto", "controlplane"))


class OtherAgent(AgentUnderTest):
    """An agent whose modules come from `path` first."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    @property
    def environment(self) -> dict[str, str]:
        """That of its daemon and its commands."""
        return {**super().environment, "PYTHONPATH": self.path}


class OtherPlane(ControlPlane):
    """A control plane whose modules come from `path` first; it may be changed between starts."""

    path = ""

    @property
    def environment(self) -> dict[str, str]:
        """That of its server and its commands."""
        return {**super().environment, "PYTHONPATH": self.path}
