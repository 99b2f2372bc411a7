# SPDX-License-Identifier: Apache-2.0
"""Folders stand in for cgroups: both refuse to be removed while something is in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from licagent.daemon.policy.run_scopes import RUN_FOLDER, remove, tidy


@pytest.fixture
def ended() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


def scope(root: Path, license_id: str, pid: str) -> Path:
    path = root / RUN_FOLDER / license_id / pid
    path.mkdir(parents=True)
    return path


def test_scopes_of_ended_commands_go(tmp_path: Path, ended: str) -> None:
    gone = scope(tmp_path, "acme", ended)
    about_to_enter = scope(tmp_path, "acme", str(os.getpid()))
    left_behind = scope(tmp_path, "other", ended)
    (left_behind / "child").mkdir()
    assert tidy(tmp_path) == 1
    assert not gone.exists()
    assert about_to_enter.exists()
    assert left_behind.exists()


def test_detaching_removes_the_folders_too(tmp_path: Path, ended: str) -> None:
    scope(tmp_path, "acme", ended)
    remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_still_runs_keeps_its_scope(tmp_path: Path, ended: str) -> None:
    scope(tmp_path, "acme", ended)
    running = scope(tmp_path, "acme", str(os.getpid()))
    remove(tmp_path)
    assert running.exists()
    assert len(list(running.parent.iterdir())) == 1


def test_nothing_to_do(tmp_path: Path) -> None:
    assert tidy(tmp_path) == 0
    remove(tmp_path)
