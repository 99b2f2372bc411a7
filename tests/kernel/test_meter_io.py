# SPDX-License-Identifier: Apache-2.0
"""Storage input and output against fio's own figures and the block device's counters."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.accuracy import Accuracy, needed
from tests.kernel.harness.disk import Disk
from tests.kernel.harness.meter import MeterUnderTest, once
from tests.kernel.harness.programs import PYTHON
from tests.kernel.harness.work import Worker, has

pytest_plugins = ["tests.kernel.harness.metered"]
pytestmark = once

MIB: Final = 1 << 20
SIZE: Final = 48 * MIB
PART: Final = 0.01
METADATA: Final = 512 * 1024
"""Blocks of the file system itself, which the device moves as well, or the task dirties."""

FIO: Final = ("fio", "--name=job", "--output-format=json", "--fallocate=none", f"--size={SIZE}")
WAYS: Final = {
    "direct": ("--direct=1", "--ioengine=psync", "--bs=64k"),
    "buffered": ("--ioengine=psync", "--bs=64k"),
    "mmap": ("--ioengine=mmap", "--bs=4k"),
    "io_uring, direct": ("--direct=1", "--ioengine=io_uring", "--iodepth=16", "--bs=16k"),
    "io_uring, buffered by its workers": (
        "--ioengine=io_uring", "--force_async=1", "--iodepth=16", "--bs=16k",
    ),
    "two threads": ("--ioengine=psync", "--bs=64k", "--thread", "--numjobs=2"),
}  # fmt: skip
MANY: Final = {"two threads": 2}


def _keep_in_memory(program: str) -> None:
    """Read a program and its libraries: doing so in the middle would be its own use of the disk.

    A run beforehand reads only the pages that it needs, and they are tens of megabytes.
    """
    path = shutil.which(program)
    assert path is not None, f"{program} is not installed: ./dev setup"
    told = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
    for file in {path, *(word for word in told.split() if word.startswith("/"))}:
        Path(file).read_bytes()


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    _keep_in_memory("fio")
    with Disk() as made:
        yield made


@pytest.fixture(autouse=True)
def _empty(disk: Disk) -> Iterator[None]:
    yield
    for path in disk.path.iterdir():
        if path.is_file():
            path.unlink()


def fio(worker: Worker, place: Path, disk: Disk, *options: str) -> dict[str, int]:
    """Run fio; bytes that it says it moved."""
    assert has("fio"), "fio is not installed: ./dev setup"
    ran = worker.run(
        place, *FIO, f"--directory={disk.path}", "--filename_format=f$jobnum", *options
    )
    assert ran.out, ran
    jobs = json.loads(ran.out[ran.out.index("{") :])["jobs"]
    if any(job["error"] in (22, 38, 95) for job in jobs):
        pytest.skip(f"the kernel lacks what fio needs for {options}")
    assert ran.status == 0, ran
    return {key: sum(job[key]["io_bytes"] for job in jobs) for key in ("read", "write")}


@pytest.mark.parametrize("way", WAYS)
def test_reading(  # noqa: PLR0917 - fixtures
    way: str, metered: MeterUnderTest, worker: Worker, place: Path, disk: Disk, accuracy: Accuracy
) -> None:
    for number in range(MANY.get(way, 1)):
        disk.file(f"f{number}", SIZE)
    before = disk.moved()
    with metered.measuring() as use:
        said = fio(worker, place, disk, *WAYS[way], "--rw=read")
    moved = disk.moved() - before

    found = use.work(place)
    assert said["read"] == SIZE * MANY.get(way, 1)
    accuracy.check(
        f"reading, {way}",
        "block device",
        found.read_bytes,
        moved.read,
        "bytes",
        PART,
        slack=METADATA,
    )
    accuracy.check(
        f"reading, {way}", "fio", found.read_bytes, said["read"], "bytes", PART, slack=METADATA
    )
    assert found.write_bytes < METADATA, "it wrote nothing but its result"


@pytest.mark.parametrize("way", WAYS)
def test_writing(  # noqa: PLR0917 - fixtures
    way: str, metered: MeterUnderTest, worker: Worker, place: Path, disk: Disk, accuracy: Accuracy
) -> None:
    options = ("--rw=write", "--end_fsync=1")
    if way == "mmap":  # a file is mapped as long as it is: fio would write it twice
        disk.file("f0", SIZE)
        options += ("--overwrite=1",)
    before = disk.moved()
    with metered.measuring() as use:
        said = fio(worker, place, disk, *WAYS[way], *options)
    moved = disk.moved() - before

    found = use.work(place)
    assert said["write"] == SIZE * MANY.get(way, 1)
    accuracy.check(
        f"writing, {way}",
        "block device",
        found.write_bytes,
        moved.written,
        "bytes",
        PART,
        slack=METADATA,
    )
    accuracy.check(
        f"writing, {way}", "fio", found.write_bytes, said["write"], "bytes", PART, slack=METADATA
    )
    assert found.cancelled_bytes < METADATA


@pytest.mark.measured_again
def test_written_and_removed_before_it_is_stored(
    metered: MeterUnderTest, worker: Worker, place: Path, disk: Disk, accuracy: Accuracy
) -> None:
    """What never reached the disk is told: written less cancelled is what the device wrote."""
    path = disk.path / "short-lived"
    before = disk.moved()
    with metered.measuring() as use:
        ran = worker.run(place, "/bin/sh", "-c", f"head -c {SIZE} /dev/zero > {path}; rm {path}")
        assert ran.status == 0, ran
    moved = disk.moved() - before
    # Where others fill the page cache, the kernel writes a part before it is removed.
    needed(moved.written < SIZE / 2, "the kernel wrote it before it was removed")

    found = use.work(place)
    accuracy.check(
        "written, then removed: written",
        "the program",
        found.write_bytes,
        SIZE,
        "bytes",
        PART,
        slack=METADATA,
    )
    accuracy.check(
        "written, then removed: cancelled",
        "the program",
        found.cancelled_bytes,
        SIZE - moved.written,
        "bytes",
        PART,
        slack=2 * METADATA,
    )
    accuracy.check(
        "written, then removed: written less cancelled",
        "block device",
        found.write_bytes - found.cancelled_bytes,
        moved.written,
        "bytes",
        slack=2 * METADATA,
    )


def test_a_reaped_childs_input_is_not_its_parents(
    metered: MeterUnderTest, worker: Worker, place: Path, disk: Disk, accuracy: Accuracy
) -> None:
    """/proc/PID/io of a parent has what its dead children did: differences of it count twice."""
    paths = [disk.file(f"f{number}", 16 * MIB) for number in range(2)]
    script = "".join(f"cat {path} > /dev/null; " for path in paths) + "echo read; read line"
    before = disk.moved()
    with metered.measuring() as use, worker.started(place, "/bin/sh", "-c", script) as runs:
        assert runs.line() == "read"
        use.add(metered.cut())
        parent = use.work(place, lambda who: who.pid == runs.pid)
        shown = dict(
            line.split(": ") for line in Path(f"/proc/{runs.pid}/io").read_text().splitlines()
        )
        runs.finish()
    moved = disk.moved() - before

    assert int(shown["read_bytes"]) >= 32 * MIB, "this kernel does not even add children's"
    assert parent.read_bytes < METADATA, "it has its children's"
    accuracy.check(
        "children that are reaped: read",
        "block device",
        use.work(place).read_bytes,
        moved.read,
        "bytes",
        PART,
        slack=METADATA,
    )


def test_a_live_process_in_many_sheets(
    metered: MeterUnderTest, worker: Worker, place: Path, disk: Disk, accuracy: Accuracy
) -> None:
    """It reads and writes while it is read; what it did is the sum of the sheets."""
    source, target = disk.file("source", SIZE), disk.path / "target"
    copy = (
        f"import os\n"
        f"with open({str(source)!r}, 'rb') as a, open({str(target)!r}, 'wb') as b:\n"
        f"    while part := a.read({MIB}):\n"
        f"        b.write(part); b.flush(); os.fsync(b.fileno())\n"
        f"        print(len(part), flush=True); input()\n"
    )
    before = disk.moved()
    parts = 0
    with metered.measuring() as use, worker.started(place, *PYTHON, "-c", copy) as runs:
        assert runs.process.stdin is not None
        while runs.line():
            sheet = metered.cut()
            parts += any(row.who.pid == runs.pid and row.read_bytes for row in sheet.work)
            use.add(sheet)
            runs.process.stdin.write("\n")
            runs.process.stdin.flush()
        runs.finish()
    moved = disk.moved() - before

    found = use.work(place)
    assert parts > 10, "read-ahead took it at once"
    for name, measured, expected in (
        ("read", found.read_bytes, moved.read),
        ("written", found.write_bytes, moved.written),
    ):
        accuracy.check(
            f"copied in many sheets: {name}",
            "block device",
            measured,
            expected,
            "bytes",
            PART,
            slack=2 * METADATA,
        )


def test_the_disk_is_not_used_by_others(disk: Disk) -> None:
    """The reference itself: nothing moves while nobody does anything."""
    disk.file("settled", MIB)
    before = disk.moved()
    subprocess.run(["sync", "--file-system", str(disk.path)], check=True)
    assert disk.moved() == before
