# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from licagent.host import processes as module
from licagent.host.cgroups import CgroupTree
from licagent.host.processes import (
    ProcessGone,
    describe,
    executable_of,
    pids,
    start_boottime_ns,
)

Start = Callable[..., subprocess.Popen[bytes]]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def await_exec(process: subprocess.Popen[bytes], name: str) -> None:
    for _ in range(6000):
        if Path(f"/proc/{process.pid}/comm").read_text().strip() == name:
            return
        time.sleep(0.01)
    pytest.fail(f"{name} was never run")


def test_ourselves() -> None:
    found = describe(os.getpid())
    assert found.pid == os.getpid()
    assert found.parent == os.getppid()
    assert (found.uid, found.gid) == (os.getuid(), os.getgid())
    assert found.executable == os.path.realpath("/proc/self/exe")
    assert not found.executable_deleted
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert 0 < found.started_boottime_ns < now_ns


@root_only
def test_user_group_and_cgroup_of_another(tree: CgroupTree, start: Start) -> None:
    made = tree.create("/system.slice/etl.service")
    process = start("sleep", "60", user=65534, group=65534, extra_groups=[])
    await_exec(process, "sleep")
    tree.enter(made.path, process.pid)
    found = describe(process.pid)
    assert (found.name, found.uid, found.gid, found.effective_uid) == ("sleep", 65534, 65534, 65534)
    assert found.user == "nobody"
    assert found.cgroup == f"/{tree.root.name}/system.slice/etl.service"
    assert found.parent == os.getpid()


def test_a_name_is_the_kernels_and_not_made_longer_by_the_process(
    start: Start, tmp_path: Path
) -> None:
    copy = tmp_path / "fifteen-letters-and-more"
    shutil.copy("/bin/sleep", copy)
    process = start(str(copy), "60")
    await_exec(process, "fifteen-letters")
    assert describe(process.pid).name == "fifteen-letters"


def test_a_program_that_was_deleted(start: Start, tmp_path: Path) -> None:
    copy = tmp_path / "my sleep (1)"
    shutil.copy("/bin/sleep", copy)
    process = start(str(copy), "60")
    await_exec(process, "my sleep (1)")
    assert executable_of(process.pid) == (str(copy), False)
    assert describe(process.pid).name == "my sleep (1)"
    copy.unlink()
    found = describe(process.pid)
    assert found.executable == str(copy)
    assert found.executable_deleted


def test_the_start_time_agrees_with_psutil(start: Start) -> None:
    process = start("sleep", "60")
    # The most of some: whoever is held up between the two clocks finds less.
    offset_s = max(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) for _ in range(10))
    started_s = start_boottime_ns(process.pid) / 1e9 + offset_s
    assert started_s == pytest.approx(psutil.Process(process.pid).create_time(), abs=1.5)


def test_gone_and_zombie(start: Start) -> None:
    process = start("true")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    zombie = describe(process.pid)
    assert zombie.executable is None
    assert zombie.name == "true"
    process.wait()
    with pytest.raises(ProcessGone, match=str(process.pid)):
        describe(process.pid)
    with pytest.raises(ProcessGone):
        start_boottime_ns(process.pid)
    assert executable_of(process.pid) == (None, False)


def test_a_pid_that_changes_hands_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1, 2])
    monkeypatch.setattr(module, "start_boottime_ns", lambda _pid: next(times))
    with pytest.raises(ProcessGone):
        describe(os.getpid())


def test_all_pids(start: Start) -> None:
    process = start("sleep", "60")
    found = list(pids())
    assert os.getpid() in found
    assert process.pid in found
    assert len(found) == len(set(found))


def test_every_process_can_be_described() -> None:
    described = 0
    for pid in pids():
        try:
            found = describe(pid)
        except ProcessGone:
            continue
        assert found.pid == pid
        described += 1
    assert described > 1
