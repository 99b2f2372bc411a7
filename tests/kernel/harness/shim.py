# SPDX-License-Identifier: Apache-2.0
"""A daemon that sees the wall clock which a test sets; a test module asks by `pytest_plugins`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.kernel.harness.wall_clock import WallClock


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of clock_shim.c, built."""
    made = tmp_path_factory.mktemp("shim") / "clock_shim.so"
    source = Path(__file__).with_name("clock_shim.c")
    subprocess.run(
        ["cc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(made), str(source)], check=True
    )
    return made


@pytest.fixture
def wall(shim: Path, tmp_path: Path) -> WallClock:
    """The true time, not synchronised."""
    found = WallClock(shim, tmp_path / "setting")
    found.turn()
    return found
