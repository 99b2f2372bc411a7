# SPDX-License-Identifier: Apache-2.0
"""Storage footprint on real filesystems, against repquota(8), du(1) and the filesystem itself."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness import quota_disk
from tests.kernel.harness.accuracy import Accuracy
from tests.kernel.harness.meter import once
from tests.kernel.harness.programs import PYTHON

from licagent.domain.footprint import FootprintSpec
from licagent.domain.usage import Quality
from licagent.metering.footprint import FootprintRow, Footprints, FootprintState, Instant
from licagent.metering.inodes import Walked, WalkTask
from licagent.metering.walk import TreeWalk

pytest_plugins = ["tests.kernel.harness.metered"]
pytestmark = [
    once,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems"),
]

MIB: Final = 1 << 20


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    with quota_disk.mounted(quota=False) as path:
        yield path


@pytest.fixture(scope="module")
def quota() -> Iterator[Path]:
    try:
        with quota_disk.mounted(quota=True) as path:
            yield path
    except quota_disk.NoQuota as error:
        pytest.skip(str(error))


def clock() -> Instant:
    boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    return Instant("boot", boottime, time.time_ns() // 1_000_000)


def states(*specs: FootprintSpec) -> list[FootprintState]:
    """Measure once."""
    footprints = Footprints(specs, clock=clock)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            footprints.sample()
            found = footprints.states()
            if all(state.measured_unix_ms for state in found):
                return list(found)
            time.sleep(0.02)
    finally:
        footprints.close()
    raise AssertionError(found)


def used(path: Path) -> int:
    """Bytes in use as the filesystem itself counts, delayed allocation done."""
    subprocess.run(["sync", "--file-system", str(path)], check=True)
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def du(path: Path) -> int:
    done = subprocess.run(
        ["du", "-sx", "--block-size=1", str(path)], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[0])


def walked(path: Path, *, cross: bool = False) -> Walked:
    return TreeWalk(WalkTask("w", str(path), cross_devices=cross)).run()


def total(found: Walked) -> int:
    return sum(size for size, _ in found.held.values())


def fill(folder: Path) -> None:
    """Sparse, hard-linked, long and short files, folders, links."""
    folder.mkdir()
    (folder / "plain").write_bytes(os.urandom(3 * MIB))
    with (folder / "sparse").open("wb") as file:
        file.truncate(500 * MIB)
        file.seek(400 * MIB)
        file.write(os.urandom(MIB))
    for number in range(3):
        (folder / f"name{number}").hardlink_to(folder / "plain")
    below = folder / "below"
    below.mkdir()
    for number in range(300):
        (below / f"{number}").write_bytes(b"x" * number * 50)
    (folder / "link").symlink_to("/" + "x" * 100)
    os.mkfifo(folder / "pipe")


def test_sparse_and_hard_linked_against_du_and_the_filesystem(
    disk: Path, accuracy: Accuracy
) -> None:
    before = used(disk)
    fill(disk / "tree")
    after = used(disk)
    (state,) = states(FootprintSpec("tree", str(disk / "tree")))
    what = "footprint of sparse and hard-linked files"
    accuracy.check(what, "du", state.stored_bytes, du(disk / "tree"), "bytes")
    # The parent's folder may have grown by a block for the new name.
    accuracy.check(what, "statvfs", state.stored_bytes, after - before, "bytes", slack=4096)


def test_delayed_allocation_counts_before_it_is_written(disk: Path, accuracy: Accuracy) -> None:
    folder = disk / "delayed"
    folder.mkdir()
    (folder / "file").write_bytes(os.urandom(8 * MIB))
    at_once = total(walked(folder))
    subprocess.run(["sync", "--file-system", str(disk)], check=True)
    accuracy.check(
        "footprint before it is on the disk", "the same after sync", at_once, du(folder), "bytes"
    )


def test_deleted_but_open_against_the_filesystem(disk: Path, accuracy: Accuracy) -> None:
    folder = disk / "deleted"
    folder.mkdir()
    used(disk)
    program = (
        "import os, sys\n"
        f"f = open({str(folder / 'file')!r}, 'wb'); f.write(os.urandom({4 * MIB})); f.flush()\n"
        "os.fsync(f.fileno()); os.unlink(f.name); print('gone', flush=True); input()\n"
    )
    before = used(disk)
    with subprocess.Popen(
        [*PYTHON, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "gone\n"
        held = used(disk) - before
        (state,) = states(FootprintSpec("deleted", str(folder)))
        accuracy.check(
            "footprint of a deleted, open file",
            "statvfs",
            state.stored_bytes - du(folder),
            held,
            "bytes",
        )
        holder.communicate("\n")
    assert total(walked(folder)) == du(folder)


def test_what_a_container_deleted_belongs_to_the_hosts_folder(disk: Path) -> None:
    """In its mount namespace the folder has another name; in the filesystem it has the same."""
    folder, other = disk / "volume", disk / "elsewhere"
    folder.mkdir()
    other.mkdir()
    script = (
        f"mount --bind {folder} /mnt && exec {' '.join(PYTHON)} -c '"
        'import os; f = open("/mnt/file", "wb"); f.write(os.urandom(1 << 20)); f.flush();'
        'os.fsync(f.fileno()); os.unlink("/mnt/file"); print("gone", flush=True); input()\''
    )
    with subprocess.Popen(
        ["unshare", "--mount", "/bin/sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "gone\n"
        assert walked(folder).deleted_bytes == MIB
        assert walked(other).deleted_bytes == 0
        assert walked(disk).deleted_bytes == MIB
        holder.communicate("\n")


@pytest.mark.parametrize("launcher", [(), ("unshare", "--mount")])
def test_what_a_process_with_another_root_deleted_is_found(
    disk: Path, launcher: tuple[str, ...]
) -> None:
    folder = disk / f"jail{len(launcher)}"
    folder.mkdir()
    program = (
        f"import os; os.chroot({str(folder)!r}); f = open('/file', 'wb')\n"
        "f.write(os.urandom(1 << 20)); f.flush(); os.fsync(f.fileno()); os.unlink('/file')\n"
        "print('gone', flush=True); input()\n"
    )
    with subprocess.Popen(
        [*launcher, *PYTHON, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "gone\n"
        assert walked(folder).deleted_bytes == MIB
        holder.communicate("\n")


def test_other_filesystems_only_when_told(disk: Path, tmp_path: Path) -> None:
    folder = disk / "crossing"
    (folder / "mounted").mkdir(parents=True)
    (folder / "bound").mkdir()
    (folder / "file").write_bytes(b"x" * MIB)
    fill(disk / "outside")
    mounts = (
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder / "mounted")],
        ["mount", "--bind", str(disk / "outside"), str(folder / "bound")],
    )
    try:
        for mount in mounts:
            subprocess.run(mount, check=True)
        (folder / "mounted" / "other").write_bytes(b"x" * 2 * MIB)
        alone, all_ = total(walked(folder)), total(walked(folder, cross=True))
    finally:
        for mount in mounts:
            subprocess.run(["umount", mount[-1]], check=False)
    assert MIB <= alone < 1.1 * MIB
    # The bound folder is of the same filesystem: it is not this tree's, nor twice anybody's.
    assert 2 * MIB <= all_ - alone < 2.1 * MIB


def test_by_user_without_quota_against_du(disk: Path, accuracy: Accuracy) -> None:
    folder = disk / "users"
    folder.mkdir()
    for uid, length in ((4101, MIB), (4102, 3 * MIB)):
        own = folder / str(uid)
        own.mkdir()
        (own / "file").write_bytes(os.urandom(length))
        for path in (own, own / "file"):
            os.chown(path, uid, uid)
    found = states(FootprintSpec("users", str(folder), user="*"))
    assert {state.source for state in found} == {"walk"}
    sizes = {state.uid: state.stored_bytes for state in found}
    for uid in (4101, 4102):
        accuracy.check(
            "footprint of a user, by walk", "du", sizes[uid], du(folder / str(uid)), "bytes"
        )
    (one,) = states(FootprintSpec("one", str(folder), user="4102"))
    assert (one.uid, one.stored_bytes) == (4102, sizes[4102])


# ---------------------------------------------------------------------- quota


def test_projects_against_repquota(quota: Path, accuracy: Accuracy) -> None:
    """Sparse, hard-linked and deleted-but-open files are in both."""
    for project in (7001, 7002):
        folder = quota / str(project)
        folder.mkdir()
        quota_disk.set_project(folder, project)
        fill(folder / "tree")
    with (quota / "7001" / "open").open("wb") as file:
        file.write(os.urandom(2 * MIB))
        os.fsync(file.fileno())
        Path(file.name).unlink()
        reported = quota_disk.reported(quota, "-P")
        found = states(FootprintSpec("all", str(quota), project="*"))
        (one,) = states(FootprintSpec("one", str(quota), project="7002"))
        walk = TreeWalk(WalkTask("walk", str(quota), by="project")).run()
    assert {state.source for state in found} == {"quota"}
    by_project = {state.project: state for state in found}
    for project in (7001, 7002):
        size, inodes = reported[project]
        what = "footprint of a project"
        accuracy.check(what, "repquota -P", by_project[project].stored_bytes, size, "bytes")
        assert by_project[project].inodes == inodes
        # Without quota a walk does: it reads project ids, and finds the deleted file.
        accuracy.check(f"{what}, by walk", "repquota -P", walk.held[project][0], size, "bytes")
        assert walk.held[project][1] == inodes
    assert one.stored_bytes == reported[7002][0]
    assert reported[7001][0] - reported[7002][0] == 2 * MIB


def test_users_against_repquota(quota: Path, accuracy: Accuracy) -> None:
    path = quota / "of4201"
    path.write_bytes(os.urandom(2 * MIB))
    os.chown(path, 4201, 4201)
    (state,) = states(FootprintSpec("user", str(quota), user="4201"))
    size, inodes = quota_disk.reported(quota, "-u")[4201]
    assert (state.source, state.inodes) == ("quota", inodes)
    accuracy.check(
        "footprint of a user, by quota", "repquota -u", state.stored_bytes, size, "bytes"
    )


def test_byte_seconds_of_a_project_by_the_clock(quota: Path) -> None:
    folder = quota / "timed"
    folder.mkdir()
    quota_disk.set_project(folder, 7003)
    (folder / "file").write_bytes(os.urandom(MIB))
    ahead_ms = 0

    def later() -> Instant:
        now = clock()
        return Instant(now.boot_id, now.boottime_ms + ahead_ms, now.unix_ms)

    footprints = Footprints(
        [FootprintSpec("timed", str(quota), project="7003", every_s=5)], clock=later
    )
    rows: list[FootprintRow] = []
    for _ in range(3):
        sample = footprints.sample()
        rows += sample.rows
        footprints.committed(sample)
        ahead_ms += 10_000
    assert len(rows) == 2
    size = quota_disk.reported(quota, "-P")[7003][0]
    for row in rows:
        assert row.quality is Quality.EXACT
        assert row.stored_byte_ms == size * (row.end_unix_ms - row.start_unix_ms)
        assert row.end_unix_ms - row.start_unix_ms >= 10_000
