# SPDX-License-Identifier: Apache-2.0
"""Paths on filesystems that hang cost nobody else anything."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.hanging import hanging_filesystem

from licagent.host import path_finder as module
from licagent.host.executables import DirectoryEntry, NoSuchExecutable, directory_entry
from licagent.host.path_finder import HUNG_MAX, Answer, HangingPath, PathFinder

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Clock:
    """Stands still but for what hangs: a thread that this machine holds up is none of that."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Disk:
    """Paths that are answered, but for those that hang."""

    def __init__(self, clock: Clock) -> None:
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.clock = clock
        self.hangs_s = 0.125
        """So much time passes at each path that hangs."""

    def find(self, path: str) -> DirectoryEntry:
        self.asked.append(path)
        if path in self.hanging:
            self.clock.now_s += self.hangs_s
            assert self.answers.wait(60), "it was waited for"
        if "gone" in path:
            raise NoSuchExecutable(path, "gone")
        return DirectoryEntry(1, len(path), path.rpartition("/")[2])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(module, "STALL_S", 0.125)  # and its sums are exact
    disk = Disk(Clock())
    monkeypatch.setattr(module, "time", disk.clock)
    yield disk
    disk.answers.set()


def settle(finder: PathFinder, disk: Disk) -> None:
    """Let what hangs come back, and wait until the threads have seen it."""
    disk.hanging.clear()
    disk.answers.set()
    threads = [thread for thread in threading.enumerate() if thread.name == "paths"]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_each_path_has_its_answer(disk: Disk) -> None:
    found = PathFinder(disk.find).find(["/a/x", "/gone", "/a/x"])
    assert list(found) == ["/a/x", "/gone"]
    assert found["/a/x"] == DirectoryEntry(1, 4, "x")
    assert isinstance(found["/gone"], NoSuchExecutable)


def test_nothing_is_asked_of_no_paths(disk: Disk) -> None:
    assert PathFinder(disk.find).find([]) == {}


def test_what_hangs_keeps_its_entry_and_holds_up_the_others_once(disk: Disk) -> None:
    finder = PathFinder(disk.find)
    before = finder.find(["/a", "/b", "/c"])
    disk.hanging = {"/b"}
    assert finder.find(["/a", "/b", "/c"]) == before
    assert finder.hanging == ("/b",)

    disk.asked.clear()
    assert finder.find(["/a", "/b", "/c"]) == before
    assert disk.asked == ["/a", "/c"], "nobody waits for it again"

    settle(finder, disk)
    disk.asked.clear()
    finder.find(["/b"])
    assert disk.asked == ["/b"]
    assert not finder.hanging


def test_what_hangs_and_was_never_seen_has_no_entry(disk: Disk) -> None:
    disk.hanging = {"/b"}
    found = PathFinder(disk.find).find(["/b", "/c"])
    assert isinstance(found["/b"], HangingPath)
    assert found["/c"] == DirectoryEntry(1, 2, "c")


def test_what_went_away_is_not_remembered(disk: Disk) -> None:
    finder = PathFinder(lambda path: disk.find(path + suffix))
    suffix = ""
    finder.find(["/b"])
    suffix = "gone"
    assert isinstance(finder.find(["/b"])["/b"], NoSuchExecutable)
    disk.hanging = {"/bgone"}
    assert isinstance(finder.find(["/b"])["/b"], HangingPath)


def test_a_policy_that_was_refused_costs_the_one_in_force_nothing(disk: Disk) -> None:
    finder = PathFinder(disk.find)
    before = finder.find(["/b"])
    finder.find(["/elsewhere"])
    disk.hanging = {"/b"}
    assert finder.find(["/b"]) == before


def test_threads_that_hang_have_an_end(disk: Disk) -> None:
    """Links may lead into a filesystem that hangs from everywhere."""
    paths = [f"/link{number}" for number in range(HUNG_MAX + 5)]
    disk.hanging = set(paths)
    finder = PathFinder(disk.find)
    found = finder.find(paths)
    assert all(isinstance(each, HangingPath) for each in found.values())
    assert sorted(finder.hanging) == sorted(paths[:HUNG_MAX])
    disk.asked.clear()
    finder.find([*paths, "/another"])
    assert disk.asked == []


def test_a_slow_filesystem_holds_up_no_longer_than_is_said(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every path is answered in the end, whichever comes first in the policy."""
    monkeypatch.setattr(module, "STALL_S", 64.0)
    returned = threading.Event()

    def slow(path: str) -> DirectoryEntry:
        found = disk.find(path)
        disk.clock.now_s += 0.0625
        if len(disk.asked) % 4 == 0:  # here the patience is over: it takes longer than that
            returned.wait(60)
        return found

    def look() -> dict[str, Answer]:
        returned.clear()
        found = finder.find(paths, 0.25)
        returned.set()
        settle(finder, disk)
        return found

    finder = PathFinder(slow)
    paths = [f"/{number}" for number in range(40)]
    found = look()
    assert disk.asked == paths[:4]
    assert all(isinstance(found[path], HangingPath) for path in paths[3:])
    while any(isinstance(each, HangingPath) for each in found.values()):
        found = look()
        assert len(disk.asked) < 60
    assert disk.asked[:40] == paths
    assert list(found) == paths
    assert not finder.hanging


def test_what_takes_longer_than_the_patience_is_known_the_next_time(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_S", 64.0)
    disk.hanging, disk.hangs_s = {"/a"}, 1.0
    finder = PathFinder(disk.find)
    before = set(threading.enumerate())
    assert isinstance(finder.find(["/a"], 1.0)["/a"], HangingPath)
    assert disk.asked == ["/a"]
    (look,) = set(threading.enumerate()) - before
    disk.answers.set()
    look.join(60)
    assert not look.is_alive()
    disk.answers.clear()
    assert finder.find(["/a"], 1.0)["/a"] == DirectoryEntry(1, 2, "a")


@root_only
def test_a_real_filesystem_that_answers_nothing(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    paths = [str(near / "a"), *(str(far / str(number)) for number in range(20)), str(near / "b")]
    finder = PathFinder()
    with hanging_filesystem(far):
        began = time.monotonic()
        found = finder.find(paths)
        took_s = time.monotonic() - began
        assert took_s < 10 * module.STALL_S, "one mount is waited for once"
        for path in paths[1:-1]:
            assert isinstance(found[path], HangingPath)
            assert finder.is_hanging(path)
        for path in (paths[0], paths[-1]):
            assert found[path] == directory_entry(path)
            assert not finder.is_hanging(path)
    settle(finder, Disk(Clock()))
    assert finder.find(paths) == {path: directory_entry(path) for path in paths}
    assert not finder.is_hanging(paths[1])
