# SPDX-License-Identifier: Apache-2.0
"""The ledger on a real ext4: the power goes, the disk is full, the disk is read-only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.meter import once

from licagent.store.ledger import Ledger
from licagent.store.ledger_types import LedgerBlocked, LedgerLimits

pytestmark = [once, pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems")]

_SHUTDOWN: Final = 0x8004587D
"""EXT4_IOC_SHUTDOWN (include/uapi/linux/ext4.h)."""
_NO_FLUSH: Final = 2
"""EXT4_GOING_FLAGS_NOLOGFLUSH: neither data nor journal reach the disk any more."""
_WRITER: Final = """
import sys
from pathlib import Path
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import LedgerLimits
ledger = Ledger(Path(sys.argv[1]), boot_id=sys.argv[2], limits=LedgerLimits(segment_bytes=20_000))
number = int(ledger.marks.get("number", b"0"))
print("ready", flush=True)
while True:
    number += 1
    ledger.commit([b"%d" % number] * 7, {"number": b"%d" % number})
    print(number, flush=True)
"""


class Image:
    """An ext4 in a file, mounted at `path`."""

    def __init__(self, folder: Path, kibibytes: int) -> None:
        self._image = folder / "image"
        self.path = folder / "mounted"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(kibibytes << 10)
        _run("mkfs.ext4", "-q", "-m", "0", str(self._image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def umount(self) -> None:
        _run("umount", str(self.path))

    def remount(self, how: str) -> None:
        _run("mount", "-o", f"remount,{how}", str(self.path))

    def power_cut(self) -> None:
        """From now on nothing reaches the disk; what had not is gone at the next mount."""
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_FLUSH))
        finally:
            os.close(handle)


@pytest.fixture
def image(request: pytest.FixtureRequest) -> Iterator[Image]:
    folder = Path(tempfile.mkdtemp(prefix="licagent-ledger-"))
    with contextlib.ExitStack() as held:
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        made = Image(folder, getattr(request, "param", 16 * 1024))
        held.callback(_run, "umount", "--lazy", str(made.path))  # also when a test failed
        yield made


def opened(image: Image, boot_id: str = "b", *, bound: int = 512 << 20) -> Ledger:
    limits = LedgerLimits(spool_max_bytes=bound, segment_bytes=20_000)
    return Ledger(image.path / "usage", boot_id=boot_id, limits=limits)


def test_the_power_goes_again_and_again(image: Image) -> None:
    last = 0
    for boot, commits in enumerate((0, 1, 5, 23, 60)):
        command = [sys.executable, "-c", _WRITER, str(image.path / "usage"), f"boot-{boot}"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stderr is not None
            assert writer.stdout.readline() == "ready\n"
            for _ in range(commits):
                last = int(writer.stdout.readline())
            # Linux 6.18 lets the one fsync that is under way when ext4 is shut down return success
            # (a bare append and fsync shows it too), so what counts is what was answered before.
            sure = last
            image.power_cut()
            for line in writer.stdout:
                last = int(line)
            assert "LedgerBlocked" in writer.stderr.read()
            assert writer.wait() != 0
        image.umount()
        image.mount()
        if not (image.path / "usage").exists():
            assert last == 0
            continue
        ledger = opened(image)
        marked = int(ledger.marks.get("number", b"0"))
        assert marked >= sure, "a commit that was answered is gone"
        assert marked <= last + 1
        last = marked
        numbers = [int(payload) for _, payload in ledger.records()]
        assert numbers == [number for number in range(1, marked + 1) for _ in range(7)]
        assert ledger.verify().is_intact
        ledger.close()
    assert last > 80


@pytest.mark.parametrize("image", [2048], indirect=True)
def test_a_full_disk(image: Image) -> None:
    ledger = opened(image)
    ledger.commit([b"first"], {"number": b"0"})
    filler = image.path / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    taken = 0
    with pytest.raises(LedgerBlocked, match="No space left"):  # noqa: PT012 -- until it is full
        for number in range(1, 10_000):
            ledger.commit([os.urandom(300)] * 3, {"number": b"%d" % number})
            taken = number
    assert ledger.trouble
    held = list(ledger.records())
    assert len(held) == 1 + 3 * taken
    assert int(ledger.marks["number"]) == taken
    ledger.close()
    # Over a restart on the full disk: the same, and reading works.
    ledger = opened(image)
    assert int(ledger.marks["number"]) == taken
    assert list(ledger.records()) == held
    filler.unlink()
    ledger.commit([b"last"], {"number": b"%d" % (taken + 1)})
    assert not ledger.trouble
    assert list(ledger.records()) == [*held, (len(held) + 1, b"last")]
    assert ledger.verify().is_intact
    ledger.close()


def test_a_read_only_disk(image: Image) -> None:
    ledger = opened(image)
    ledger.commit([b"one"], {"number": b"1"})
    ledger.close()
    image.remount("ro")
    ledger = opened(image)
    assert not ledger.settled
    assert ledger.marks == {"number": b"1"}
    with pytest.raises(LedgerBlocked, match="Read-only"):
        ledger.commit([b"two"], {"number": b"2"})
    assert list(ledger.batches(0, limit_bytes=1)) == []
    assert [payload for _, payload in ledger.records()] == [b"one"]
    image.remount("rw")
    ledger.commit([b"two"], {"number": b"2"})
    assert ledger.settled
    assert [payload for _, payload in ledger.records()] == [b"one", b"two"]
    assert ledger.verify().is_intact
    ledger.close()


def test_the_disk_goes_under_a_running_ledger_and_comes_back(image: Image) -> None:
    ledger = opened(image)
    ledger.commit([b"one"], {"number": b"1"})
    image.power_cut()
    for _ in range(2):
        with pytest.raises(LedgerBlocked):
            ledger.commit([b"two"], {"number": b"2"})
    assert ledger.next_sequence == 2
    ledger.close()
    image.umount()
    image.mount()
    ledger = opened(image, "c")
    assert ledger.marks == {"number": b"1"}
    ledger.commit([b"two"], {"number": b"2"})
    assert [payload for _, payload in ledger.records()] == [b"one", b"two"]
    ledger.close()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
