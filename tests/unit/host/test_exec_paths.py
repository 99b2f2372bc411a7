# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from licagent.host import exec_paths as module
from licagent.host.exec_paths import candidates, installed, running, search_directories

Start = Callable[..., subprocess.Popen[bytes]]


def test_running_programs_come_first_also_deleted_ones(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "my-sleep"
    shutil.copy("/bin/sleep", program)
    pids = {start(str(program), "60").pid for _ in range(3)}
    for _ in range(500):
        if all(os.readlink(f"/proc/{pid}/exe") == str(program) for pid in pids):
            break
        time.sleep(0.01)
    program.unlink()
    (found,) = (c for c in running() if c.path == str(program))  # once, though three run it
    assert found.pid in pids
    assert Path(found.open_path).read_bytes() == Path("/bin/sleep").read_bytes()
    everything = list(candidates())
    kinds = [candidate.pid is not None for candidate in everything]
    assert kinds == sorted(kinds, reverse=True)


def test_installed_executables_once_each(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "program")
    (tmp_path / "again").symlink_to("program")
    os.link(tmp_path / "program", tmp_path / "hard")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "text").write_text("no program")
    (tmp_path / "folder").mkdir()
    found = list(installed([str(tmp_path), str(tmp_path), "/nonexistent"]))
    assert [candidate.path for candidate in found] == [str(tmp_path / "program")]
    assert found[0].pid is None


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    monkeypatch.setenv("PATH", f"{tmp_path}/link:relative:.:/usr/bin:{tmp_path}/none")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").mkdir()
    found = search_directories([str(real)])
    assert found[0] == str(real)
    assert found.count(str(real)) == 1
    assert os.path.realpath("/usr/bin") in found
    assert not any("relative" in directory for directory in found)
    assert len(found) == len(set(found))


def test_it_is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    real = os.listdir

    def listdir(path: str) -> list[str]:
        looked_at.append(path)
        return real(path)

    monkeypatch.setattr(module.os, "listdir", listdir)
    first = list(itertools.islice(candidates(), 1))
    assert first[0].pid is not None
    assert looked_at == []
    assert any(candidate.pid is None for candidate in candidates())
    assert looked_at
