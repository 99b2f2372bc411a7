# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from licagent.host import exec_paths as module
from licagent.host.exec_paths import Candidate, installed, running, search_directories
from licagent.host.executables import NoSuchExecutable, directory_entry
from licagent.host.processes import executable_of

DEEP = """
import os, shutil, sys
os.chdir(sys.argv[1])
for _ in range(25):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
shutil.copy("/bin/sleep", "deep")
print("there", flush=True)
os.execv("./deep", ["deep", "60"])
"""
root_only = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and FUSE"
)
Start = Callable[..., subprocess.Popen[bytes]]


def found_in(steps: Iterator[Candidate | None]) -> list[Candidate]:
    return [each for each in steps if each is not None]


def open_descriptors() -> list[str]:
    found = os.listdir("/proc/self/fd")
    return [fd for fd in found if Path(f"/proc/self/fd/{fd}").is_symlink()]


def until_it_runs_sleep(pid: int) -> None:
    for _ in range(6000):
        if Path(f"/proc/{pid}/comm").read_text() == "deep\n":
            return
        time.sleep(0.01)
    pytest.fail("it does not run")


def test_running_programs_once_each_also_deleted_ones(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "my-sleep"
    shutil.copy("/bin/sleep", program)
    pids = {start(str(program), "60").pid for _ in range(3)}
    for _ in range(6000):
        if all(os.readlink(f"/proc/{pid}/exe") == str(program) for pid in pids):
            break
        time.sleep(0.01)
    program.unlink()
    (found,) = (c for c in found_in(running()) if c.path == str(program))  # three run it
    assert found.pid in pids
    assert Path(found.open_path).read_bytes() == Path("/bin/sleep").read_bytes()


def test_installed_executables_once_each(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "program")
    (tmp_path / "again").symlink_to("program")
    os.link(tmp_path / "program", tmp_path / "hard")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "text").write_text("no program")
    (tmp_path / "folder").mkdir()
    (tmp_path / "program").chmod(0o755)
    found = found_in(installed([str(tmp_path), str(tmp_path), "/nonexistent"]))
    names = sorted(Path(candidate.path).name for candidate in found)
    # Links are looked at by whoever opens them.
    assert names in (["again", "dangling", "hard"], ["again", "dangling", "program"])
    assert {candidate.pid for candidate in found} == {None}


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


def test_one_step_looks_at_a_few_names_however_many_there_are(tmp_path: Path) -> None:
    """What is no program counts too; and a folder has an end."""
    for number in range(300):
        (tmp_path / f"text-{number}").touch()
    steps = installed([str(tmp_path)])
    assert next(steps) is None
    held = [os.readlink(f"/proc/self/fd/{fd}") for fd in open_descriptors()]
    assert str(tmp_path) not in held, "it could not be unmounted"
    assert 300 // module._AT_ONCE <= len(list(steps)) <= 300
    for number in range(300):
        (tmp_path / f"text-{number}").chmod(0o755)
    found = found_in(installed([str(tmp_path)], names_max=100))
    assert len(found) == 100


def chain(folder: Path, length: int) -> Path:
    """A link to a link to a link, and a folder at its end."""
    for number in range(length):
        (folder / f"l{number}").symlink_to(f"l{number + 1}")
    (folder / f"l{length}").mkdir()
    return folder / "l0"


def test_a_chain_of_links_of_any_length_costs_its_folder(tmp_path: Path) -> None:
    """os.path.realpath calls itself for each link, and ends with RecursionError."""
    first = chain(tmp_path, 1200)
    failed: list[tuple[str, Exception]] = []
    assert str(tmp_path / "l1200") not in search_directories([str(first)])
    assert found_in(installed([str(first)], lambda *each: failed.append(each))) == []
    ((folder, error),) = failed
    assert folder == str(first)
    assert isinstance(error, OSError)
    assert error.errno == errno.ELOOP
    with pytest.raises(NoSuchExecutable):
        directory_entry(first / "program")


@root_only
def test_a_folder_that_may_not_be_asked_is_passed_over_unasked(tmp_path: Path) -> None:
    """FUSE of another user, without allow_other: even root is refused. Nobody serves it here."""
    folder = tmp_path / "bin"
    (folder / "below").mkdir(parents=True)
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=12345,group_id=12345".encode()
    try:
        if libc.mount(b"x", bytes(folder), b"fuse.x", 0, options):
            pytest.skip("FUSE cannot be mounted here")
        failed: list[str] = []
        asked = [str(folder), str(folder / "below")]
        assert not set(asked) & set(search_directories(asked))
        assert found_in(installed(asked, lambda each, _error: failed.append(each))) == []
        assert failed == asked
    finally:
        libc.umount2(bytes(folder), 2)
        os.close(fuse)


def test_a_process_whose_path_is_too_long_to_be_told(tmp_path: Path, start: Start) -> None:
    process = start(sys.executable, "-c", DEEP, str(tmp_path), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    try:
        until_it_runs_sleep(process.pid)
        with pytest.raises(OSError, match="too long"):
            Path(f"/proc/{process.pid}/exe").readlink()
        assert executable_of(process.pid) == (None, False)
        found = [each for each in found_in(running()) if each.pid == process.pid]
        assert [each.open_path for each in found] == [f"/proc/{process.pid}/exe"]
    finally:
        subprocess.run(["rm", "-rf", "--", *tmp_path.iterdir()], check=True)
