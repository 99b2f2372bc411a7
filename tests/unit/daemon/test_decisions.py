# SPDX-License-Identifier: Apache-2.0
"""Events as records: what is remembered between them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from licagent.daemon.decisions import CUT, DecisionBook, NameBook, kept_path
from licagent.host.cgroups import CgroupTree
from licagent.host.users import Users
from licagent.kernel.enforcement_structs import Event
from licagent.store.eventlog import EVENT_MAX_BYTES, EventLog


class _Tree(CgroupTree):
    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.paths = {7: "/system.slice/web.service"}
        self.asked: list[int] = []

    def path_of(self, cgroup_id: int) -> str | None:
        self.asked.append(cgroup_id)
        return self.paths.get(cgroup_id)


def _event(cgroup: int) -> Event:
    return Event(verdict=1, reason=1, uid=0xFFFFFFFF, gid=0xFFFFFFFF, cgroup=cgroup)


def test_a_cgroup_is_looked_up_once_and_known_when_it_is_gone() -> None:
    tree = _Tree()
    book = DecisionBook(NameBook(lambda _number: None), tree, Users())
    units = [book.record(_event(7))["process"]["unit"]]
    tree.paths.clear()  # the unit has ended
    units.append(book.record(_event(7))["process"]["unit"])
    assert units == ["web.service", "web.service"]
    assert tree.asked == [7]


def test_a_cgroup_that_was_not_found_is_asked_for_again() -> None:
    tree = _Tree()
    book = DecisionBook(NameBook(lambda _number: None), tree, Users())
    assert book.record(_event(8))["process"]["cgroup"] is None
    tree.paths[8] = "/late"
    assert book.record(_event(8))["process"]["cgroup"] == "/late"


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program with a path that JSON writes in more than an event may have."""
    folder = tmp_path
    while len(os.fsencode(folder)) < 3500:
        folder /= os.fsdecode(b"\xff" * 250)
    folder.mkdir(parents=True)
    program = folder / "sleep"
    shutil.copy(shutil.which("sleep") or "", program)
    process = subprocess.Popen([program, "600"])
    yield process
    process.kill()
    process.wait()


def test_no_path_is_too_long_for_the_log(deep: subprocess.Popen[bytes], tmp_path: Path) -> None:
    tree = _Tree()
    tree.paths[7] = "/system.slice/web.service/" + "/".join(["\x01" * 250] * 14)
    book = DecisionBook(NameBook(lambda _number: None), tree, Users())
    event = _event(7)
    event.pid = deep.pid
    event.at_ns = 2**62
    record = book.record(event)
    executable = record["process"]["executable"]
    assert CUT in executable
    assert executable.startswith(f"{tmp_path}/")
    assert executable.endswith("/sleep")
    assert record["process"]["unit"] == "web.service"
    assert len(json.dumps(record)) < EVENT_MAX_BYTES
    (tmp_path / "log").mkdir()
    log = EventLog(tmp_path / "log")
    assert log.append(record) == 1
    log.close()


def test_long_paths_stay_different() -> None:
    first, second = (kept_path("/a" * 400 + middle + "/b" * 400) for middle in ("/x", "/y"))
    assert first != second
    assert kept_path("/usr/bin/curl") == "/usr/bin/curl"
    assert kept_path(None) is None
