# SPDX-License-Identifier: Apache-2.0
"""File identities against what the kernel itself says: /proc/PID/maps shows s_dev and i_ino."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.host.executables import (
    DirectoryEntry,
    NoSuchExecutable,
    device_numbers,
    directory_entry,
    identify,
    kernel_device,
)
from licagent.host.measurable import FRESH_NS

Start = Callable[..., subprocess.Popen[bytes]]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def as_mapped(pid: int) -> tuple[int, int]:
    """Device and inode of a process's executable as the kernel shows its mapping."""
    executable = os.readlink(f"/proc/{pid}/exe")
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5] == executable:
            major, _, minor = fields[3].partition(":")
            return kernel_device(int(major, 16), int(minor, 16)), int(fields[4])
    raise AssertionError(f"{executable} is not mapped")


def started(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    assert process.stdout.readline()
    return process.pid


@given(major=st.integers(0, 4095), minor=st.integers(0, 2**20 - 1))
def test_device_numbers_go_both_ways(major: int, minor: int) -> None:
    assert device_numbers(kernel_device(major, minor)) == (major, minor)
    assert kernel_device(major, minor) < 2**32


def test_the_kernel_agrees() -> None:
    found = identify("/proc/self/exe")
    assert (found.device, found.inode) == as_mapped(os.getpid())
    assert found.ctime_ns == Path("/proc/self/exe").stat().st_ctime_ns
    assert identify(sys.executable) == found


def copy_of_cat(path: Path) -> Path:
    shutil.copy("/bin/cat", path)
    return path


@root_only
@pytest.mark.parametrize("filesystem", ["tmpfs", "overlay", "ext4", "btrfs"])
def test_the_kernel_agrees_on(filesystem: str, tmp_path: Path, start: Start) -> None:
    point = tmp_path / "point"
    point.mkdir()
    if filesystem == "tmpfs":
        command = ["mount", "-t", "tmpfs", "none"]
    elif filesystem == "overlay":
        folders = {name: tmp_path / name for name in ("lower", "upper", "work")}
        for folder in folders.values():
            folder.mkdir()
        copy_of_cat(folders["lower"] / "cat")
        options = ",".join(f"{name}dir={folder}" for name, folder in folders.items())
        command = ["mount", "-t", "overlay", "none", "-o", options]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(256 * 1024 * 1024)
        make = shutil.which(f"mkfs.{filesystem}")
        if make is None:
            pytest.skip(f"mkfs.{filesystem} is not installed")
        subprocess.run([make, "-q", image], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image)]
    if subprocess.run([*command, point], check=False, capture_output=True).returncode != 0:
        pytest.skip(f"{filesystem} cannot be mounted here")
    try:
        program = point / "cat"
        if filesystem != "overlay":
            copy_of_cat(program)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = start(str(program), **pipes)
        assert process.stdin is not None
        process.stdin.write(b"here\n")
        process.stdin.flush()
        pid = started(process)
        found = identify(program)
        assert (found.device, found.inode) == as_mapped(pid)
        assert identify(f"/proc/{pid}/exe") == found
        process.kill()
        process.communicate()
    finally:
        # Lazily: after a failure the program still runs there.
        subprocess.run(["umount", "--lazy", point], check=True)


def test_which_changes_make_another_version(tmp_path: Path) -> None:
    program = copy_of_cat(tmp_path / "a")
    first = identify(program)
    other = identify(copy_of_cat(tmp_path / "b"))
    assert other.inode != first.inode
    (tmp_path / "link").symlink_to(program)
    assert identify(tmp_path / "link") == first
    time.sleep(2 * FRESH_NS / 1e9)  # a change time is only as fine as the clock's ticks
    with program.open("r+b") as file:
        os.utime(file.fileno(), ns=(0, 0))  # mtime can be set back, the change time cannot
    assert identify(program).inode == first.inode
    assert identify(program).ctime_ns > first.ctime_ns
    assert program.stat().st_mtime_ns == 0


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none", "/dev/null", "nul\0byte"):
        with pytest.raises(NoSuchExecutable):
            identify(path)


def test_a_directory_entry_names_what_the_kernel_runs(tmp_path: Path) -> None:
    program = copy_of_cat(tmp_path / "cat-1.0")
    (tmp_path / "cat").symlink_to("cat-1.0")
    folder = identify_folder(tmp_path)
    assert directory_entry(tmp_path / "cat") == DirectoryEntry(*folder, "cat-1.0")
    assert directory_entry(program) == directory_entry(tmp_path / "cat")
    # A package that is yet to come, or being replaced.
    assert directory_entry(tmp_path / "later") == DirectoryEntry(*folder, "later")
    with pytest.raises(NoSuchExecutable):
        directory_entry(tmp_path / "nowhere" / "cat")
    with pytest.raises(NoSuchExecutable):
        directory_entry("/")


def identify_folder(path: Path) -> tuple[int, int]:
    entry = directory_entry(path / "x")
    assert entry.directory_inode == path.stat().st_ino
    return entry.directory_device, entry.directory_inode


@root_only
def test_a_bind_mount_of_the_folder_changes_nothing(tmp_path: Path) -> None:
    real, view = tmp_path / "real", tmp_path / "view"
    real.mkdir()
    view.mkdir()
    copy_of_cat(real / "cat")
    subprocess.run(["mount", "--bind", real, view], check=True)
    try:
        assert directory_entry(view / "cat") == directory_entry(real / "cat")
        assert identify(view / "cat") == identify(real / "cat")
    finally:
        subprocess.run(["umount", view], check=True)
