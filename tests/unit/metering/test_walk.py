# SPDX-License-Identifier: Apache-2.0
"""A walk counts what du(1) counts, whoever changes the tree under it, and goes nowhere else."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from licagent.metering.inodes import ALL, Walked, WalkTask
from licagent.metering.walk import TreeWalk


def du(path: Path) -> int:
    """Bytes in blocks, each inode once, this filesystem only."""
    done = subprocess.run(
        ["du", "-sx", "--block-size=1", str(path)], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[0])


def walk(path: Path, by: str = "", owner: int = ALL, largest_linked: int = 1000) -> Walked:
    task = WalkTask("w", str(path), by, owner)
    return TreeWalk(task, largest_linked=largest_linked).run()


def total(found: Walked) -> int:
    return sum(size for size, _ in found.held.values())


NUMBERS = itertools.count()
KINDS = ("file", "hole", "folder", "link", "hard link", "pipe", "long link")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    entries=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 300_000), st.integers(0, 10)), max_size=25
    )
)
def test_the_same_as_du(tmp_path: Path, entries: list[tuple[str, int, int]]) -> None:
    root = tmp_path / str(next(NUMBERS))
    root.mkdir()
    folders, files = [root], []
    for number, (kind, length, where) in enumerate(entries):
        path = folders[where % len(folders)] / f"{number}"
        if kind == "file":
            path.write_bytes(b"x" * length)
            files.append(path)
        elif kind == "hole":
            with path.open("wb") as file:
                file.truncate(length * 1000)
                file.seek(length)
                file.write(b"y" * 5000)
            files.append(path)
        elif kind == "folder":
            path.mkdir()
            folders.append(path)
        elif kind == "hard link" and files:
            path.hardlink_to(files[where % len(files)])
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "long link":
            path.symlink_to("y" * 200)
        else:
            path.symlink_to("/usr")
    found = walk(root)
    assert total(found) == du(root)
    assert (found.is_whole, found.skipped, found.notes) == (True, 0, [])


def test_a_file_with_several_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1_000_000)
    before = total(walk(tmp_path))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert total(walk(tmp_path)) == before


def test_beyond_the_remembered_links_it_is_estimated(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"x" * 100_000)
        (tmp_path / f"{name}2").hardlink_to(tmp_path / name)
    found = walk(tmp_path, largest_linked=1)
    assert found.notes == ["more files with several names than are remembered"]
    assert abs(total(found) - du(tmp_path)) < 10


def test_depth_beyond_the_longest_path_is_no_hiding_place(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    name = "d" * 200
    for _ in range(40):  # 8,000 bytes of path
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(file, b"x" * 100_000)
    os.close(file)
    os.close(fd)
    found = walk(tmp_path)
    assert total(found) == du(tmp_path) > 100_000
    assert found.skipped == 0


def test_out_of_time_it_says_so(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}").mkdir()
    ticks = itertools.count()
    found = TreeWalk(
        WalkTask("w", str(tmp_path), limit_s=5), clock=lambda: float(next(ticks))
    ).run()
    assert not found.is_whole
    assert "not done after 5 s" in found.notes


def test_a_path_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    found = walk(tmp_path / "no")
    assert (found.held, found.missing, found.is_whole) == ({}, True, True)


class Meddling:
    """Does something to the tree when the walk reports for the n-th time."""

    def __init__(self, when: int, what: object) -> None:
        self.left = when
        self.what = what

    def __call__(self, _entries: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.what()  # type: ignore[operator]


def test_a_folder_moved_away_does_not_lead_the_walk_outside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "rest").mkdir()
    (inside / "rest" / "file").write_bytes(b"x" * 50_000)
    outside.mkdir()
    (outside / "big").write_bytes(b"x" * 5_000_000)
    for when in range(1, 12):
        walker = TreeWalk(
            WalkTask("w", str(inside)),
            told=Meddling(when, lambda: (inside / "a").rename(outside / "a")),
        )
        found = walker.run()
        assert total(found) < 1_000_000
        assert total(found) >= 50_000  # what nobody moved was found in any case
        if (outside / "a").exists():
            (outside / "a").rename(inside / "a")


def test_a_folder_replaced_by_a_link_is_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "a", inside / "b", outside):
        folder.mkdir(parents=True)
    (outside / "big").write_bytes(b"x" * 5_000_000)

    def swap() -> None:
        for name in ("a", "b"):
            (inside / name).rename(inside / f"{name}-was")
            (inside / name).symlink_to(outside)

    found = TreeWalk(WalkTask("w", str(inside)), told=Meddling(1, swap)).run()
    assert total(found) < 1_000_000
    assert found.skipped == 2


def test_deleted_but_open_counts_while_it_is_open(tmp_path: Path) -> None:
    before = total(walk(tmp_path))
    path = tmp_path / "gone"
    with path.open("wb") as file:
        file.write(b"x" * 1_000_000)
        file.flush()
        os.fsync(file.fileno())
        held = os.fstat(file.fileno()).st_blocks * 512
        path.unlink()
        assert du(tmp_path) == before  # no name leads to it
        found = walk(tmp_path)
        assert (total(found), found.deleted_bytes) == (before + held, held)
        again = os.dup(file.fileno())
        assert walk(tmp_path).deleted_bytes == held  # one inode, two descriptors
        os.close(again)
        (tmp_path / "below").mkdir()
        assert walk(tmp_path / "below").deleted_bytes == 0  # it was not there
    assert walk(tmp_path).deleted_bytes == 0


def test_deleted_but_mapped_counts_without_a_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    path.write_bytes(b"x" * 1_000_000)
    os.sync()
    held = path.stat().st_blocks * 512
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    fd = os.open(path, os.O_RDONLY)
    address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    path.unlink()
    try:
        assert walk(tmp_path).deleted_bytes == held
    finally:
        libc.munmap(address, 4096)
    assert walk(tmp_path).deleted_bytes == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_by_user(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"x" * 10_000)
    for uid, length in ((4001, 100_000), (4002, 200_000)):
        path = tmp_path / str(uid)
        path.write_bytes(b"x" * length)
        os.chown(path, uid, uid)
    found = walk(tmp_path, "user")
    assert {4001, 4002} <= set(found.held)
    assert found.held[4001] == ((tmp_path / "4001").stat().st_blocks * 512, 1)
    assert total(found) == du(tmp_path)
    assert walk(tmp_path, "user", 4002).held == {4002: found.held[4002]}
