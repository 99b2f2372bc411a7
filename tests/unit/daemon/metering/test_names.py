# SPDX-License-Identifier: Apache-2.0
"""Names of cgroups, users and executables, from the host that the tests run on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from licagent.daemon.metering.names import HostNameBook
from licagent.host.cgroups import CgroupTree
from licagent.host.executables import kernel_device
from licagent.host.processes import start_boottime_ns
from licagent.kernel.usage import Who


class Tree(CgroupTree):
    """A tree that is made of two cgroups."""

    def __init__(self) -> None:
        super().__init__(Path("/cg/root"), Path("/cg"))
        self.asked = 0

    def path_of(self, cgroup_id: int) -> str | None:
        self.asked += 1
        return {3: "/a.slice/x.service"}.get(cgroup_id)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    found = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield found
    found.communicate(b"\n")


def who(pid: int, file: Path, **changes: int) -> Who:
    info = file.stat()
    fields = {
        "pid": pid,
        "start_ns": start_boottime_ns(pid) + 7 if pid else 0,
        "uid": 0,
        "gid": 0,
        "cgroup": 3,
        "device": kernel_device(os.major(info.st_dev), os.minor(info.st_dev)),
        "inode": info.st_ino,
        "path": 0,
        "digest": 0,
    }
    return Who(**(fields | changes), comm="x")


def book(tree: CgroupTree | None = None) -> HostNameBook:
    return HostNameBook(tree or Tree(), 1_000, {4: "/bin/named"}.get)


def test_cgroups_are_asked_for_once_and_unknown_ones_again() -> None:
    tree = Tree()
    names = book(tree)
    for _ in range(2):
        assert names.cgroup(3) == "/a.slice/x.service"
    assert tree.asked == 1
    assert [names.cgroup(9), names.cgroup(9), names.cgroup(0)] == ["", "", ""]
    assert tree.asked == 3
    assert names.relative("/root/a") == "/a"
    assert names.relative("/root") == "/"
    assert names.relative("/elsewhere") == ""


def test_units_and_containers_as_selectors_name_them() -> None:
    names = book()
    identity = "ab" * 32
    assert names.unit("/a.slice/x.service") == "x.service"
    assert names.unit(f"/system.slice/docker-{identity}.scope") == identity
    assert names.unit("/plain/folder") == ""


def test_users_have_a_name_or_their_number() -> None:
    assert book().user(0) == "root"
    assert book().user(3_999_999_999) == "3999999999"


def test_starts_are_told_by_one_clock_for_all_of_a_boot() -> None:
    assert book().process_start_unix_ms(5_000_000) == 1_005


def test_what_a_live_process_runs(child: subprocess.Popen[bytes]) -> None:
    file = Path(f"/proc/{child.pid}/exe")
    path = os.readlink(file)
    names = book()
    assert names.executable(who(child.pid, file)) == path
    # Known by its file from now on, whoever runs it.
    assert names.executable(who(0, file)) == path


def test_a_pid_that_is_another_process_by_now_names_nothing(
    child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    file = Path(f"/proc/{child.pid}/exe")
    other = tmp_path / "other"
    other.write_bytes(b"x")
    names = book()
    earlier = who(child.pid, other, start_ns=start_boottime_ns(child.pid) - 10**9)
    assert names.executable(earlier) == ""
    assert names.executable(who(child.pid, other)) == ""  # it runs something else by now
    assert names.executable(who(child.pid, file, inode=0)) == ""


def test_installed_programs_are_known_without_a_process() -> None:
    file = Path(os.path.realpath("/bin/true"))
    assert book().executable(who(0, file)) == str(file)


def test_what_the_policy_names_by_path_has_that_name() -> None:
    names = book()
    file = Path(os.path.realpath("/bin/true"))
    assert names.executable(who(0, file, path=4)) == "/bin/named"
    assert names.executable(who(0, file, path=5)) == str(file)
