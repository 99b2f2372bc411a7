# SPDX-License-Identifier: Apache-2.0
"""One build of each kind: stage the sources, run the distribution's own tool, keep the result."""

from __future__ import annotations

from pathlib import Path


def deb(root: Path, version: str, out: Path) -> list[Path]:
    """The Debian packages of `version` in `out`: licagent_V_amd64.deb, licplane_V_amd64.deb."""
    raise NotImplementedError


def rpm(root: Path, version: str, out: Path) -> list[Path]:
    """The RPM packages of `version` in `out`."""
    raise NotImplementedError
