# SPDX-License-Identifier: Apache-2.0
"""A user who keeps the daemon busy with large executables holds up nobody but himself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.dial import LIMIT_S, Dialer, answer_of, dialer, install, settle
from tests.kernel.harness.probes import eventually
from tests.kernel.harness.subjects import NO_LICENSE, Rules, sha256, until

from licagent.host.executables import identify
from licagent.host.measurable import FILE_MAX_BYTES
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import ContentKey
from licagent.kernel.maps import Map

pytest_plugins = ["tests.kernel.harness.fixtures"]

HOSTILE: Final = 12_345
"""No account has it, and none is needed."""
OTHER: Final = 12_346


def owned(path: Path, owner: int, *, size_bytes: int = 0) -> Path:
    """A program of a user's own; `size_bytes`: with holes at its end."""
    install(path, variant=path.name)
    if size_bytes:
        os.truncate(path, size_bytes)
    os.chown(path, owner, owner)
    return path


def is_being_read(agent: AgentUnderTest, path: Path) -> bool:
    """Whether the daemon holds a lease on it (/proc/locks)."""
    inode, pid = path.stat().st_ino, str(agent.pid)
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "LEASE" in words and pid in words:
            place = words[words.index(pid) + 1]
            if int(place.split(":")[2]) == inode:
                return True
    return False


@contextlib.contextmanager
def kept_busy(agent: AgentUnderTest, path: Path) -> Iterator[None]:
    """Whenever the daemon has read this file, there is another version of it that somebody ran.

    However quick a machine is, it is at it: a test that is slow beside it proves no less.
    """
    stop = threading.Event()

    def again() -> None:
        while not stop.wait(0.02):
            if not is_being_read(agent, path):
                os.utime(path)
                settle(path)
                subprocess.run([path], stdin=subprocess.DEVNULL, check=False, capture_output=True)
                stop.wait(0.2)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LIMIT_S)


@pytest.fixture
def busy(by_content: Rules, folder: Path) -> Iterator[tuple[Rules, Path, Dialer]]:
    """The daemon reads the largest file that it reads at all, of a hostile user who runs it."""
    big = owned(folder / "big", HOSTILE, size_bytes=FILE_MAX_BYTES)
    with (
        dialer(by_content.cgroup, big, by_content.to, uid=HOSTILE) as running,
        kept_busy(by_content.agent, big),
    ):
        eventually(lambda: is_being_read(by_content.agent, big), "the large file is being read")
        yield by_content, big, running


def test_licenses_are_renewed_and_revoked_while_a_large_file_is_read(
    busy: tuple[Rules, Path, Dialer], dial: Path
) -> None:
    rules, big, hostile = busy
    agent = rules.agent

    jti = rules.allow(sha256(dial))  # another policy, with what was measured before
    assert answer_of(rules.cgroup, dial, rules.to) == "OK"
    agent.issue(jti, ["r"], expires_in_s=7200)
    assert answer_of(rules.cgroup, dial, rules.to) == "OK"
    agent.revoke(jti)
    assert answer_of(rules.cgroup, dial, rules.to) == "EKEYREVOKED"
    assert hostile.ask() != "OK"

    eventually(lambda: is_being_read(agent, big), "it is at it all the time")


def test_the_programs_of_others_are_measured_while_a_large_file_is_read(
    busy: tuple[Rules, Path, Dialer], folder: Path
) -> None:
    rules, big, _hostile = busy
    small = owned(folder / "small", OTHER)
    rules.allow(sha256(small))

    with dialer(rules.cgroup, small, rules.to, uid=OTHER) as running:
        running.until("OK")

    eventually(lambda: is_being_read(rules.agent, big), "it is at it all the time")


def test_the_daemon_ends_in_the_middle_of_a_large_file(busy: tuple[Rules, Path, Dialer]) -> None:
    rules, big, _hostile = busy
    agent, pid = rules.agent, str(rules.agent.pid)

    assert agent.stop() == 0

    assert not [
        line for line in Path("/proc/locks").read_text().splitlines() if pid in line.split()
    ]
    assert big.stat().st_size == FILE_MAX_BYTES


def test_a_large_file_of_a_user_is_measured_in_its_time(rules: Rules, folder: Path) -> None:
    """Over several slices, under another policy than it was begun under."""
    large = owned(folder / "large", OTHER, size_bytes=100 * 1024**2)
    digest = sha256(large)
    rules.allow("unix:sha256:" + "0" * 64)
    with dialer(rules.cgroup, large, rules.to, uid=OTHER) as running:
        assert running.ask() == NO_LICENSE
        rules.allow(digest)
        running.until("OK")
    assert answer_of(rules.cgroup, large, rules.to, uid=OTHER) == "OK", "from its exec on"


def test_a_flood_of_programs_is_measured_in_turns(rules: Rules, folder: Path) -> None:
    """More of them than wait at a time, and another user's among them."""
    stop = threading.Event()
    source = owned(folder / "source", HOSTILE)

    def flood() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = folder / f"flood-{number % 50}"
            path.unlink(missing_ok=True)
            path.write_bytes(source.read_bytes() + str(number).encode())
            path.chmod(0o755)
            os.chown(path, HOSTILE, HOSTILE)
            subprocess.run([path], stdin=subprocess.DEVNULL, check=False, capture_output=True)

    small = owned(folder / "small", OTHER)
    rules.allow(sha256(small))
    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        for _ in range(3):
            os.utime(small)  # another version of it
            settle(small)
            with dialer(rules.cgroup, small, rules.to, uid=OTHER) as running:
                running.until("OK")
    finally:
        stop.set()
        flooder.join(30)


@pytest.fixture
def unmounting(folder: Path) -> Iterator[Path]:
    """A filesystem that a test takes away."""
    point = folder / "tmpfs"
    point.mkdir()
    # A name of its own: its device number may be given to a neighbour's tmpfs at once.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", folder.name, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=False, capture_output=True)


def test_what_was_on_a_filesystem_that_is_gone_is_unknown_to_the_kernel(
    rules: Rules, unmounting: Path
) -> None:
    """Its device number may be given to one whose files a user makes up."""
    program = install(unmounting / "dial", variant="gone")
    rules.allow(sha256(program))
    until("OK", rules, program)
    device = identify(program).device
    contents = Map(PinFolder(rules.agent.bpffs).maps / "contents")
    try:

        def known() -> bool:
            keys = map(ContentKey.from_buffer_copy, contents.keys())
            return any(key.device == device for key in keys)

        assert known()
        # While the daemon reads a file of it, it is busy.
        eventually(
            lambda: subprocess.run(["umount", unmounting], check=False).returncode == 0, "unmounted"
        )
        eventually(lambda: not known(), "the kernel has forgotten it")
    finally:
        contents.close()
