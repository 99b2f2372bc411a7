# SPDX-License-Identifier: Apache-2.0
"""The thread that measures: real files, leases and processes; what is owed to whom, and the end."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.mounts import unmount

from licagent.host import exec_search, measuring
from licagent.host import measurer as module
from licagent.host.digests import DigestCache
from licagent.host.executables import identify
from licagent.host.hashing import Reading
from licagent.host.lanes import Started
from licagent.host.measurable import FRESH_NS, Found, MeasurableFiles
from licagent.host.measurer import Measurer
from licagent.host.measuring import Outcome

BOOT = "11111111-2222-3333-4444-555555555555"
LIMIT_S = 60.0
LEASE_S = int(Path("/proc/sys/fs/lease-break-time").read_text())
HOSTILE, OTHER = 12_345, 12_346
BIG_BYTES = 1024**3
Start = Callable[..., subprocess.Popen[bytes]]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners need root")


class Watched:
    """A measurer, and what it has told."""

    def __init__(self, digests: DigestCache) -> None:
        self.digests = digests
        self._told = threading.Event()
        self.measurer = Measurer(digests, self._told.set)
        self.outcomes: list[Outcome] = []

    def look(self) -> None:
        self.outcomes += self.measurer.take()

    def until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + LIMIT_S
        while not done():
            assert self.measurer.failure is None, self.measurer.failure
            assert time.monotonic() < end, what
            self._told.wait(0.02)
            self._told.clear()
            self.look()

    def outcome(self, sha256: str) -> Outcome:
        """The first outcome with a digest, waited for."""
        self.until(lambda: any(each.sha256 == sha256 for each in self.outcomes), sha256)
        return next(each for each in self.outcomes if each.sha256 == sha256)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(DigestCache(tmp_path / "digests", BOOT))
    made.measurer.start()
    try:
        yield made
    finally:
        made.measurer.stop()


def program(path: Path, *, owner: int = 0, size_bytes: int = 0) -> Path:
    """Waits for the end of its standard input; `size_bytes`: as large as that, with holes."""
    shutil.copy("/bin/cat", path)
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(path.name.encode())
        if size_bytes:
            file.truncate(size_bytes)
    path.chmod(0o755)
    os.chown(path, owner, owner)
    time.sleep(2 * FRESH_NS / 1e9)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(start: Start, path: Path) -> subprocess.Popen[bytes]:
    """Run it, and return when it runs that file."""
    process = start(str(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"running\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"running\n"
    return process


def leases() -> set[int]:
    """Inodes on which this process holds a lease."""
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "LEASE" in words and str(os.getpid()) in words:
            found.add(int(words[words.index(str(os.getpid())) + 1].split(":")[2]))
    return found


@contextlib.contextmanager
def slow_reading(*paths: Path) -> Iterator[None]:
    """In each of their turns these files are read from their beginning: it takes as long as this.

    However quick or busy a machine is.
    """
    real = Reading.step

    def step(self: Reading, most_bytes: int) -> bool:
        if os.fstat(self.fd).st_ino not in numbers:
            return real(self, most_bytes)
        self.size_bytes = 0
        real(self, 1)
        return False

    numbers = {inode(path) for path in paths}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "step", step)
        yield


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_what_a_process_runs(watched: Watched, tmp_path: Path, start: Start) -> None:
    path = program(tmp_path / "program")
    process = run(start, path)

    watched.measurer.ask(Started(process.pid, 7))

    found = watched.outcome(digest(path))
    assert found.identity == identify(path)
    assert found.waiters == (Started(process.pid, 7),)
    assert not leases()


def test_one_file_of_two_processes_is_read_once_and_both_are_told(
    watched: Watched, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "program", size_bytes=64 * 1024**2)
    asked = [Started(run(start, path).pid, number) for number in (1, 2)]
    read = []
    real = DigestCache.begin
    monkeypatch.setattr(
        DigestCache, "begin", lambda self, found: (read.append(found.path), real(self, found))[1]
    )

    for each in (*asked, asked[0]):
        watched.measurer.ask(each)

    sha256 = digest(path)
    watched.outcome(sha256)
    told = lambda: {started for each in watched.outcomes for started in each.waiters}  # noqa: E731
    watched.until(lambda: told() == set(asked), "both are told")
    assert {each.sha256 for each in watched.outcomes} == {sha256}
    assert len(read) == 1


@needs_root
def test_a_large_file_holds_up_neither_others_nor_its_owners_small_ones(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    """However quickly it is read: all others' digests come before its own."""
    big = program(tmp_path / "big", owner=HOSTILE, size_bytes=BIG_BYTES)
    small = [program(tmp_path / f"of-{owner}", owner=owner) for owner in (0, HOSTILE, OTHER)]
    running = [run(start, path) for path in (big, *small)]
    wanted = {identify(path) for path in small}
    with slow_reading(big):
        watched.measurer.ask(Started(running[0].pid, 1))
        watched.until(lambda: leases() == {inode(big)}, "the large one is being read")
        for number, process in enumerate(running[1:]):
            watched.measurer.ask(Started(process.pid, number))
        watched.until(
            lambda: wanted <= {each.identity for each in watched.outcomes}, "all small ones"
        )
        assert leases() == {inode(big)}, "the large one is still being read"
        assert watched.digests.get(identify(big)) is None


@pytest.mark.parametrize("moment", ["open_again", "begin"])
def test_the_process_that_asked_is_gone(
    watched: Watched,
    tmp_path: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Before its file's turn the file is found by its name; in its turn it is held."""
    path = program(tmp_path / "program")
    process = run(start, path)
    owner: type = MeasurableFiles if moment == "open_again" else DigestCache
    real = getattr(owner, moment)

    def kill_first(self: object, found: Found) -> Any:
        process.kill()
        process.wait()
        return real(self, found)

    monkeypatch.setattr(owner, moment, kill_first)
    watched.measurer.ask(Started(process.pid, 1))

    found = watched.outcome(digest(path))
    assert found.identity == identify(path)
    assert found.waiters == (Started(process.pid, 1),)
    assert process.returncode == -signal.SIGKILL


@needs_root
def test_a_writer_goes_first_and_no_signal_ends_anybody(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    """The lease of the thread is broken by another process, as on the main thread."""
    assert signal.getsignal(signal.SIGIO) == signal.SIG_DFL
    big = program(tmp_path / "big", owner=HOSTILE, size_bytes=BIG_BYTES)
    process = run(start, big)
    before = identify(big)
    with slow_reading(big):
        watched.measurer.ask(Started(process.pid, 1))
        watched.until(lambda: leases() == {inode(big)}, "it is being read")
        process.kill()  # what runs cannot be opened for writing
        process.wait()

        script = 'import sys; file = open(sys.argv[1], "r+b"); file.truncate(100); file.close()'
        done = subprocess.run(["python3", "-c", script, str(big)], check=False, timeout=LIMIT_S)

        assert done.returncode == 0
        watched.until(lambda: not leases(), "the lease is given back")
        watched.look()
        assert watched.digests.get(before) is None
        assert before not in {each.identity for each in watched.outcomes}


def test_a_file_that_changes_while_it_waits_is_measured_as_it_is_then(
    watched: Watched, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "program")
    process = run(start, path)
    before, sha256 = identify(path), digest(path)
    real = DigestCache.begin

    def change_first(self: DigestCache, found: Found) -> object:
        monkeypatch.setattr(DigestCache, "begin", real)
        path.chmod(0o700)
        return real(self, found)

    monkeypatch.setattr(DigestCache, "begin", change_first)
    watched.measurer.ask(Started(process.pid, 1))

    found = watched.outcome(sha256)
    assert found.identity == identify(path) != before
    assert found.waiters == (Started(process.pid, 1),)
    assert watched.digests.get(before) is None


def test_a_file_that_was_written_this_moment_is_measured_in_a_moment(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    path = program(tmp_path / "program")
    process = run(start, path)
    os.utime(path)

    watched.measurer.ask(Started(process.pid, 1))

    assert watched.outcome(digest(path)).identity == identify(path)


@needs_root
def test_it_ends_in_the_middle_of_a_file_and_lets_go_of_it(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    big = program(tmp_path / "big", owner=HOSTILE, size_bytes=BIG_BYTES)
    with slow_reading(big):
        watched.measurer.ask(Started(run(start, big).pid, 1))
        watched.until(lambda: leases() == {inode(big)}, "it is being read")

        watched.measurer.stop()

        assert not leases()
        assert watched.digests.get(identify(big)) is None
        assert not [each for each in threading.enumerate() if each.name == "measure"]


@needs_root
def test_a_file_that_has_changed_is_read_no_further(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    """Taking it from its folder is a change too: a file that is gone costs nobody anything."""
    big = program(tmp_path / "big", owner=HOSTILE, size_bytes=BIG_BYTES)
    process = run(start, big)
    before = identify(big)
    with slow_reading(big):
        watched.measurer.ask(Started(process.pid, 1))
        watched.until(lambda: leases() == {inode(big)}, "it is being read")

        process.kill()
        process.wait()
        big.unlink()

        watched.until(lambda: not leases(), "it is let go")
        assert watched.digests.get(before) is None


@needs_root
def test_nothing_is_read_any_more_once_no_selector_is_a_digest(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    big = program(tmp_path / "big", owner=HOSTILE, size_bytes=BIG_BYTES)
    process = run(start, big)
    with slow_reading(big):
        watched.measurer.ask(Started(process.pid, 1))
        watched.until(lambda: leases() == {inode(big)}, "it is being read")

        watched.measurer.rest()
        watched.until(lambda: not leases(), "it is let go")
        assert watched.digests.get(identify(big)) is None

        watched.measurer.ask(Started(process.pid, 1))
        watched.until(lambda: leases() == {inode(big)}, "it is asked for again")


@needs_root
def test_a_policy_waits_for_roots_files_and_for_no_others(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    big = program(tmp_path / "big", owner=HOSTILE, size_bytes=BIG_BYTES // 8)
    mine = [program(tmp_path / f"mine-{number}") for number in range(3)]
    names = [str(big), str(tmp_path / "none"), *map(str, mine)]
    process = run(start, big)
    with slow_reading(big):
        watched.measurer.ask(Started(process.pid, 1))
        watched.until(lambda: leases() == {inode(big)}, "it is being read")

        done = watched.measurer.measure_named(
            names, also_others=False, wait_s=LIMIT_S, meanwhile=watched.look
        )

        assert done
    watched.measurer.rest()  # what was read of it so far was not read in a row
    watched.until(lambda: not leases(), "it is let go")
    assert [watched.digests.get(identify(path)) for path in mine] == [digest(each) for each in mine]
    assert watched.measurer.measure_named(
        names, also_others=True, wait_s=LIMIT_S, meanwhile=watched.look
    )
    order = [identity for identity, _sha256 in watched.digests.items()]
    assert order == [identify(path) for path in (*mine, big)]


@needs_root
def test_more_large_files_than_are_looked_ahead_hold_up_no_policy(
    watched: Watched, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_AHEAD_MAX", 2)
    big = [program(tmp_path / f"b{n}", owner=HOSTILE, size_bytes=BIG_BYTES) for n in range(3)]
    with slow_reading(*big):
        for path in big:
            watched.measurer.ask(Started(run(start, path).pid, 1))
        watched.until(lambda: bool(leases()), "one is being read")
        mine = program(tmp_path / "mine")

        assert watched.measurer.measure_named(
            [str(mine)], also_others=False, wait_s=LIMIT_S, meanwhile=watched.look
        )

        assert watched.digests.get(identify(mine)) == digest(mine)
        assert leases() <= {inode(path) for path in big}
        assert leases()


@needs_root
def test_a_policy_does_not_wait_for_ever(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "program", owner=HOSTILE)
    real, returned = Reading.step, threading.Event()

    def step(self: Reading, most_bytes: int) -> bool:
        returned.wait(LIMIT_S)
        return real(self, most_bytes)

    monkeypatch.setattr(Reading, "step", step)

    assert not watched.measurer.measure_named(
        [str(path)], also_others=True, wait_s=0.05, meanwhile=watched.look
    )

    returned.set()
    watched.until(
        lambda: watched.digests.get(identify(path)) is not None, "it is read all the same"
    )


def test_who_finds_no_room_is_looked_for_again(
    watched: Watched, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what runs and what is installed; here by what runs."""
    monkeypatch.setattr(module, "ASKED_MAX", 0)
    path = program(tmp_path / "program")
    process = run(start, path)

    watched.measurer.ask(Started(process.pid, 1))

    found = watched.outcome(digest(path))
    assert found.is_for_all
    assert found.waiters == ()


DEEP = """
import os, shutil, sys
os.chdir(sys.argv[1])
for _ in range(25):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
shutil.copy("/bin/cat", "deep")
with open("deep", "ab") as file:
    file.write(sys.argv[2].encode())
os.execv("./deep", ["deep"])
"""


def test_a_process_whose_path_is_too_long_to_be_told_costs_nobody_anything(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    """No descriptor, nor what others wait for; it is measured like any."""
    other = program(tmp_path / "other")
    command = (sys.executable, "-c", DEEP, str(tmp_path), "deep")
    deep = start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert deep.stdin is not None
        assert deep.stdout is not None
        deep.stdin.write(b"running\n")
        deep.stdin.flush()
        assert deep.stdout.readline() == b"running\n"
        time.sleep(2 * FRESH_NS / 1e9)
        sha256 = hashlib.sha256(Path(f"/proc/{deep.pid}/exe").read_bytes()).hexdigest()
        watched.measurer.ask(Started(deep.pid, 1))
        assert watched.outcome(sha256).waiters == (Started(deep.pid, 1),)
        held = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            watched.measurer.ask(Started(deep.pid, number))
        watched.measurer.ask(Started(run(start, other).pid, 1))
        watched.outcome(digest(other))
        assert watched.measurer.measure_named(
            [str(other)], also_others=True, wait_s=LIMIT_S, meanwhile=watched.look
        )
        assert len(os.listdir("/proc/self/fd")) <= held + 2, "the pipes of the other process"
    finally:
        subprocess.run(["rm", "-rf", "--", str(tmp_path / ("d" * 200))], check=True)


def test_a_folder_that_becomes_a_chain_of_links_ends_nothing(
    watched: Watched, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_search, "standard_directories", lambda: ())
    folder = tmp_path / "bin"
    folder.mkdir()
    path = program(folder / "program")
    process = run(start, path)
    watched.measurer.ask(Started(process.pid, 1))
    watched.outcome(digest(path))
    process.kill()
    process.wait()
    folder.rename(tmp_path / "moved")
    for number in range(1200):
        (tmp_path / f"l{number}").symlink_to(f"l{number + 1}")
    (tmp_path / "l1200").mkdir()
    folder.symlink_to("l0")

    watched.measurer.ask(Started(process.pid, 1))  # it is gone: looked for in folders

    watched.until(
        lambda: not watched.measurer._measuring._search._folders, "the folder is forgotten"
    )
    other = program(tmp_path / "other")
    watched.measurer.ask(Started(run(start, other).pid, 1))
    watched.outcome(digest(other))


@pytest.mark.parametrize("where", ["find", "begin", "finish"])
def test_a_fault_of_ours_costs_one_name(  # noqa: PLR0917 - fixtures
    watched: Watched,
    tmp_path: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    broken, whole = program(tmp_path / "broken"), program(tmp_path / "whole")
    asked = [run(start, path) for path in (broken, whole)]
    owner: type = MeasurableFiles if where == "find" else DigestCache
    real = getattr(owner, where)

    def fail(self: object, of: object, *more: object) -> object:
        path = of.path if isinstance(of, Found) else of
        if path == f"/proc/{asked[0].pid}/exe":
            raise RecursionError("too deep")
        return real(self, of, *more)

    with caplog.at_level(logging.ERROR):
        monkeypatch.setattr(owner, where, fail)
        for _ in range(3):
            for process in asked:
                watched.measurer.ask(Started(process.pid, 1))
        watched.outcome(digest(whole))
        watched.until(
            lambda: not watched.measurer._measuring._jobs and not watched.measurer._asked, "all"
        )
    assert sum("was not measured" in each.message for each in caplog.records) == 1
    assert not leases()


@needs_root
def test_a_writer_goes_first_also_while_the_thread_waits_for_room(
    watched: Watched, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes outcomes has no time; nobody who wants to write waits for that."""
    big = program(tmp_path / "big", owner=HOSTILE, size_bytes=BIG_BYTES)
    process = run(start, big)
    with slow_reading(big):
        watched.measurer.ask(Started(process.pid, 1))
        watched.until(lambda: leases() == {inode(big)}, "it is being read")
        monkeypatch.setattr(module, "OUTCOMES_MAX", 0)
        process.kill()
        process.wait()
        script = 'import sys; file = open(sys.argv[1], "r+b"); file.truncate(100); file.close()'
        # The kernel breaks a lease itself after 45 s (lease-break-time).
        subprocess.run([sys.executable, "-c", script, str(big)], check=True, timeout=LEASE_S / 2)
    assert not leases()


@needs_root
def test_a_file_that_waits_keeps_nobody_from_unmounting(
    watched: Watched, tmp_path: Path, start: Start
) -> None:
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", tmp_path.name, point], check=True)
    try:
        first, waits = program(tmp_path / "first"), program(point / "waits")
        waiting = identify(waits)
        processes = [run(start, path) for path in (first, waits)]
        with slow_reading(first):
            watched.measurer.ask(Started(processes[0].pid, 1))
            watched.until(lambda: leases() == {inode(first)}, "one is being read")
            watched.measurer.ask(Started(processes[1].pid, 1))
            jobs = watched.measurer._measuring._jobs
            watched.until(lambda: waiting in jobs, "the other one, root's as well, waits for it")
            for process in processes:
                process.kill()
                process.wait()
            unmount(point)  # it waits for longer than is tried
            assert waiting in jobs
        watched.until(lambda: waiting not in jobs, "it is given up")
    finally:
        subprocess.run(["umount", point], check=False, capture_output=True)
