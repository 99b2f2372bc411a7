# SPDX-License-Identifier: Apache-2.0
"""A digest never stands for other content than was read: each way to try, for real."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.mounts import unmount

from licagent.host import hashing
from licagent.host import measurable as module
from licagent.host.digests import DigestCache
from licagent.host.executables import NoSuchExecutable, identify
from licagent.host.hashing import NotMeasured
from licagent.host.mounts import Mount, MountTable

BOOT = "11111111-2222-3333-4444-555555555555"
Start = Callable[..., subprocess.Popen[bytes]]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def write_aged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o755)
    time.sleep(2 * module.FRESH_NS / 1e9)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "digests", BOOT)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "memory"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=False, capture_output=True)


def test_content_is_measured_once_per_version(
    cache: DigestCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_aged(tmp_path / "program", b"x" * 3_000_000)
    found = cache.measure(program)
    assert found.sha256 == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert found.size_bytes == 3_000_000
    assert found.identity == identify(program)
    assert cache.get(found.identity) == found.sha256
    assert list(cache.items()) == [(found.identity, found.sha256)]
    assert cache.is_settled(program)
    assert cache.is_settled(tmp_path / "none")
    with monkeypatch.context() as patch:
        patch.setattr(DigestCache, "begin", lambda *_: pytest.fail("read again"))
        assert cache.measure(program) == found
    write_aged(program, b"y")
    assert not cache.is_settled(program)
    again = cache.measure(program)
    assert again.sha256 == hashlib.sha256(b"y").hexdigest()
    assert again.identity != found.identity
    cache.forget(again.identity)
    assert cache.get(again.identity) is None


def test_a_rename_changes_the_version_but_not_the_digest(
    cache: DigestCache, tmp_path: Path
) -> None:
    program = write_aged(tmp_path / "program", b"x")
    first = cache.measure(program)
    program.rename(tmp_path / "renamed")
    time.sleep(2 * module.FRESH_NS / 1e9)
    assert cache.measure(tmp_path / "renamed").sha256 == first.sha256


def test_a_restart_reads_nothing_again_and_a_reboot_everything(
    cache: DigestCache, tmp_path: Path
) -> None:
    found = cache.measure(write_aged(tmp_path / "program", b"x"))
    assert cache.save()
    assert not cache.save()
    assert (tmp_path / "digests").stat().st_mode & 0o777 == 0o600
    assert DigestCache(tmp_path / "digests", BOOT).get(found.identity) == found.sha256
    assert len(DigestCache(tmp_path / "digests", "another boot")) == 0


def test_a_damaged_or_foreign_cache_file_is_not_believed(
    cache: DigestCache, tmp_path: Path
) -> None:
    cache.measure(write_aged(tmp_path / "program", b"x"))
    cache.save()
    file = tmp_path / "digests"
    content = file.read_bytes()
    for damaged in (b"", b"{}", content[:-10], content.replace(b"[[", b"[[1"), b"\0" * 100):
        file.write_bytes(damaged)
        assert len(DigestCache(file, BOOT)) == 0
    file.write_bytes(content)
    assert len(DigestCache(file, BOOT)) == 1
    file.chmod(0o666)
    assert len(DigestCache(file, BOOT)) == 0
    file.chmod(0o600)
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    assert len(DigestCache(file, BOOT)) == 0


def test_memory_is_bounded(tmp_path: Path) -> None:
    cache = DigestCache(tmp_path / "digests", BOOT, max_entries=2)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    time.sleep(2 * module.FRESH_NS / 1e9)
    first = cache.measure(tmp_path / "a")
    cache.measure(tmp_path / "b")
    cache.measure(tmp_path / "c")
    assert len(cache) == 2
    assert cache.get(first.identity) is None


@root_only
def test_who_measures_most_makes_room(tmp_path: Path) -> None:
    """Nobody pushes out what others run; what goes is told, for the kernel's tables."""
    cache = DigestCache(tmp_path / "digests", BOOT, max_entries=4)
    made = {}
    for name in ("root", "other", "flood1", "flood2", "flood3", "flood4"):
        path = tmp_path / name
        path.write_bytes(name.encode())
        os.chown(path, {"root": 0, "other": 12_346}.get(name, 12_345), 0)
    time.sleep(2 * module.FRESH_NS / 1e9)
    for name in ("root", "other", "flood1", "flood2", "flood3", "flood4"):
        made[name] = cache.measure(tmp_path / name).identity
    kept = [name for name, identity in made.items() if cache.get(identity)]
    assert kept == ["root", "other", "flood3", "flood4"]
    assert cache.take_evicted() == [made["flood1"], made["flood2"]]
    assert cache.take_evicted() == []
    cache.save()
    again = DigestCache(tmp_path / "digests", BOOT, max_entries=4)
    path = tmp_path / "flood5"
    path.write_bytes(b"5")
    os.chown(path, 12_345, 0)
    time.sleep(2 * module.FRESH_NS / 1e9)
    again.measure(path)
    assert again.take_evicted() == [made["flood3"]], "owners are remembered over a restart"


def test_a_file_changed_a_moment_ago_has_to_wait(
    cache: DigestCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_aged(tmp_path / "program", b"x")
    ctime_ns = program.stat().st_ctime_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: ctime_ns + module.FRESH_NS - 1)
    with pytest.raises(NotMeasured, match="moment ago") as caught:
        cache.measure(program)
    assert caught.value.retry
    monkeypatch.setattr(module.time, "time_ns", lambda: ctime_ns + module.FRESH_NS)
    cache.measure(program)


def test_a_file_open_for_writing_is_not_measured(cache: DigestCache, tmp_path: Path) -> None:
    program = write_aged(tmp_path / "program", b"x" * 4096)
    with program.open("r+b"), pytest.raises(NotMeasured, match="open for writing") as caught:
        cache.measure(program)
    assert caught.value.retry
    # A writable mapping counts too, also when its descriptor is closed.
    fd = os.open(program, os.O_RDWR)
    mapping = mmap.mmap(fd, 4096)
    os.close(fd)
    with pytest.raises(NotMeasured, match="open for writing"):
        cache.measure(program)
    mapping.close()
    time.sleep(2 * module.FRESH_NS / 1e9)
    cache.measure(program)


def is_waited_for(path: Path) -> bool:
    """Whether somebody wants this process to give up its lease on a file (proc_locks(5))."""
    place = f":{path.stat().st_ino}"
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(
        words[1:3] == ["LEASE", "BREAKING"]
        and words[4] == str(os.getpid())
        and words[5].endswith(place)
        for words in locks
    )


def test_a_writer_who_comes_meanwhile_stops_the_measuring(
    cache: DigestCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer waits for us, we give way, and SIGIO does not end this process."""
    program = write_aged(tmp_path / "program", b"x" * 3 * hashing._CHUNK_BYTES)
    assert signal.getsignal(signal.SIGIO) == signal.SIG_DFL
    opened = threading.Event()
    real = os.pread

    def write() -> None:
        with program.open("r+b") as file:
            opened.set()
            file.write(b"evil")

    writer = threading.Thread(target=write)

    def slow_pread(fd: int, size: int, offset: int) -> bytes:
        if offset == hashing._CHUNK_BYTES:
            writer.start()
            end_s = time.monotonic() + 60
            while not is_waited_for(program):
                assert not opened.is_set(), "the lease holds it off"
                assert time.monotonic() < end_s, "the writer does not come"
                time.sleep(0.01)
            assert not opened.is_set(), "the lease holds it off"
        return real(fd, size, offset)

    monkeypatch.setattr(hashing.os, "pread", slow_pread)
    with pytest.raises(NotMeasured, match="for writing") as caught:
        cache.measure(program)
    assert caught.value.retry
    writer.join(60)
    assert opened.is_set()
    assert len(cache) == 0


def test_a_file_that_changes_without_a_writer_is_found(
    cache: DigestCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_aged(tmp_path / "program", b"x")
    real = os.pread

    def chmod_meanwhile(fd: int, size: int, offset: int) -> bytes:
        program.chmod(0o700)
        return real(fd, size, offset)

    monkeypatch.setattr(hashing.os, "pread", chmod_meanwhile)
    with pytest.raises(NotMeasured, match="changed while"):
        cache.measure(program)
    assert len(cache) == 0


def test_what_is_no_file_and_what_is_too_large(cache: DigestCache, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "none", tmp_path, tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(NoSuchExecutable):
            cache.measure(path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(module.FILE_MAX_BYTES + 1)
    with pytest.raises(NotMeasured, match="larger") as caught:
        cache.measure(tmp_path / "huge")
    assert not caught.value.retry


@root_only
def test_on_tmpfs_only_what_root_alone_can_write(cache: DigestCache, memory: Path) -> None:
    program = write_aged(memory / "program", b"x" * 4096)
    cache.measure(program)
    for owner, mode in ((65534, 0o755), (0, 0o775), (0, 0o757)):
        os.chown(program, owner, 0)
        program.chmod(mode)
        time.sleep(2 * module.FRESH_NS / 1e9)
        with pytest.raises(NotMeasured, match="unseen"):
            cache.measure(program)


@root_only
def test_why_tmpfs_is_special(memory: Path, tmp_path: Path) -> None:
    """Content changes under an unmoved change time on tmpfs, and not on a disk."""

    def change_through_a_mapping(path: Path) -> bool:
        write_aged(path, b"good" * 1024)
        before = identify(path)
        fd = os.open(path, os.O_RDWR)
        with mmap.mmap(fd, 4096) as mapping:
            assert mapping[0:4] == b"good"
            mapping[0:4] = b"evil"
        os.close(fd)
        assert path.read_bytes()[:4] == b"evil"
        return identify(path) == before

    assert change_through_a_mapping(memory / "program")
    assert not change_through_a_mapping(tmp_path / "program")


@root_only
def test_a_filesystem_that_only_a_namespace_of_its_own_sees(
    cache: DigestCache, tmp_path: Path, start: Start
) -> None:
    """Its device number may be given to another one, with files a user made up."""
    point = tmp_path / "private"
    point.mkdir()
    shutil.copy("/bin/cat", tmp_path / "cat")
    script = (
        f"mount -t tmpfs -o mode=755 none {point} && cp {tmp_path}/cat {point}/cat && "
        f"echo ready | {point}/cat && exec {point}/cat"
    )
    process = start(
        "unshare", "--mount", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(b"running\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"running\n"
    assert os.readlink(f"/proc/{process.pid}/exe") == f"{point}/cat"
    with pytest.raises(NotMeasured, match="namespace"):
        cache.measure(f"/proc/{process.pid}/exe")


@root_only
def test_what_was_on_an_unmounted_filesystem_is_dropped(
    cache: DigestCache, memory: Path, tmp_path: Path
) -> None:
    kept = cache.measure(write_aged(tmp_path / "kept", b"k"))
    gone = cache.measure(write_aged(memory / "program", b"x"))
    assert cache.forget_unmounted() == ()
    unmount(memory)
    assert cache.forget_unmounted() == (gone.identity,)
    assert cache.get(gone.identity) is None
    assert cache.get(kept.identity) == kept.sha256


@root_only
def test_a_filesystem_that_goes_while_a_file_of_it_is_read(
    cache: DigestCache, memory: Path
) -> None:
    """Its number may be given to another one as soon as nobody holds it open."""
    first = cache.measure(write_aged(memory / "first", b"1"))
    found = cache.files.find(write_aged(memory / "program", b"x"))
    reading = cache.begin(found)
    try:
        subprocess.run(["umount", "-l", memory], check=True)
        assert cache.forget_unmounted() == (first.identity,)
        while not reading.step(1 << 20):
            pass
        with pytest.raises(NotMeasured, match="unmounted"):
            cache.finish(found, reading)
    finally:
        reading.close()
        found.close()
    assert len(cache) == 0


@root_only
def test_what_went_while_nobody_looked_is_not_believed_at_a_start(
    cache: DigestCache, memory: Path, tmp_path: Path
) -> None:
    kept = cache.measure(write_aged(tmp_path / "kept", b"k"))
    gone = cache.measure(write_aged(memory / "program", b"x"))
    cache.save()
    unmount(memory)
    again = DigestCache(tmp_path / "digests", BOOT)
    assert [identity for identity, _sha256 in again.items()] == [kept.identity]
    assert again.take_evicted() == [gone.identity], "the kernel's tables may have it"


def test_what_somebody_serves_by_now_under_the_same_number(
    cache: DigestCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cache.measure(write_aged(tmp_path / "program", b"x"))
    cache.save()
    foreign = Mount(1, 0, 0, 1, "/", "/mnt", "fuse.x", "x", frozenset(), frozenset())
    monkeypatch.setattr(MountTable, "on_device", lambda *_: (foreign,))
    assert len(DigestCache(tmp_path / "digests", BOOT)) == 0
    assert cache.forget_unmounted() == (found.identity,)


def test_a_file_that_waited_is_opened_again_only_as_it_was(
    cache: DigestCache, tmp_path: Path
) -> None:
    program = write_aged(tmp_path / "program", b"x")
    found = cache.files.find(program)
    found.close()
    found.close()
    cache.files.open_again(found)
    assert os.fstat(found.fd).st_ino == program.stat().st_ino
    found.close()
    program.rename(tmp_path / "moved")
    with pytest.raises(NoSuchExecutable):
        cache.files.open_again(found)
    found.name = str(tmp_path / "moved")
    with pytest.raises(NotMeasured, match="changed") as caught:  # a rename moves the change time
        cache.files.open_again(found)
    assert caught.value.retry
    assert found.fd == -1


@root_only
def test_a_container_like_overlay_is_not_measured(cache: DigestCache, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("lower", "upper", "work", "merged")}
    for folder in folders.values():
        folder.mkdir()
    write_aged(folders["lower"] / "program", b"x")
    writable = ",".join(f"{name}dir={folders[name]}" for name in ("lower", "upper", "work"))
    read_only = f"lowerdir={folders['lower']}:{folders['upper']}"
    for options, allowed in ((writable, False), (read_only, True)):
        mounted = ["mount", "-t", "overlay", "none", "-o", options, folders["merged"]]
        subprocess.run(mounted, check=True)
        try:
            if allowed:
                digest = cache.measure(folders["merged"] / "program").sha256
                assert digest == hashlib.sha256(b"x").hexdigest()
            else:
                with pytest.raises(NotMeasured, match="container:id"):
                    cache.measure(folders["merged"] / "program")
        finally:
            unmount(folders["merged"])


@pytest.mark.parametrize("filesystem", ["fuse.sshfs", "fuseblk", "nfs4", "cifs", "9p", "virtiofs"])
def test_filesystems_whose_content_others_decide(
    cache: DigestCache, tmp_path: Path, filesystem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_aged(tmp_path / "program", b"x")
    foreign = Mount(1, 0, 0, 1, "/", "/mnt", filesystem, "x", frozenset(), frozenset())
    monkeypatch.setattr(MountTable, "on_device", lambda *_: (foreign,))
    with pytest.raises(NotMeasured, match=filesystem) as caught:
        cache.measure(program)
    assert not caught.value.retry


def test_a_known_version_on_such_a_filesystem_is_not_believed_either(
    cache: DigestCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_aged(tmp_path / "program", b"x")
    cache.measure(program)
    monkeypatch.setattr(MountTable, "on_device", lambda *_: ())
    with pytest.raises(NotMeasured):
        cache.measure(program)


def test_a_running_program_that_was_deleted(
    cache: DigestCache, tmp_path: Path, start: Start
) -> None:
    program = tmp_path / "cat"
    shutil.copy("/bin/cat", program)
    process = start(str(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"running\n")
    process.stdin.flush()
    process.stdout.readline()
    program.unlink()
    time.sleep(2 * module.FRESH_NS / 1e9)
    found = cache.measure(f"/proc/{process.pid}/exe")
    assert found.sha256 == hashlib.sha256(Path("/bin/cat").read_bytes()).hexdigest()
