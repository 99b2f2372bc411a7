# SPDX-License-Identifier: Apache-2.0
"""A digest is granted to nobody who executed something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.dial import Dialer, dialer, install
from tests.kernel.harness.subjects import NO_LICENSE, Rules, entry_of, put_entry, sha256, until

pytest_plugins = ["tests.kernel.harness.fixtures"]

NOBODY: Final = 65534
TRIES: Final = 40


@pytest.fixture
def theirs(folder: Path) -> Path:
    """A folder of a user's own."""
    made = folder / "theirs"
    made.mkdir()
    os.chown(made, NOBODY, NOBODY)
    return made


def swapped(rules: Rules, dial: Path, theirs: Path) -> tuple[Path, Dialer]:
    """A process that executed something else under the identity that a copy of `dial` has now."""
    swap = install(theirs.parent / "swap", "swap")
    other = install(theirs.parent / "other", variant="other")
    for number in range(TRIES):
        path = theirs / f"program-{number}"
        argv = [str(each) for each in (swap, path, other, dial)]
        running = dialer(rules.cgroup, argv, rules.to, uid=NOBODY)
        said = running.answer()
        if said in {"EINVAL", "EPERM", "ENOSPC"}:
            running.__exit__()
            pytest.skip(f"PR_SET_MM_MAP is not for everybody here: {said}")
        entry, info = entry_of(rules, running.pid), path.stat()
        is_same = (entry.inode, entry.ctime_ns) == (info.st_ino, info.st_ctime_ns)
        is_named = Path(f"/proc/{running.pid}/exe").readlink() == path
        if is_same and is_named and path.read_bytes() == dial.read_bytes():
            return path, running
        running.__exit__()
    pytest.skip("this machine does not do all that within a tick")


def test_a_file_that_is_written_again_within_the_tick_of_its_exec(
    by_content: Rules, dial: Path, theirs: Path
) -> None:
    path, running = swapped(by_content, dial, theirs)
    with running:
        until("OK", by_content, path)  # it is measured by now
        running.stays(NO_LICENSE)
        # Nor does a new policy, or a daemon that starts anew, take it for what its file holds.
        by_content.allow(sha256(dial))
        running.stays(NO_LICENSE)
        by_content.agent.kill()
        by_content.agent.start()
        running.stays(NO_LICENSE)


def test_what_is_stored_for_another_exec_holds_for_nobody(by_content: Rules, dial: Path) -> None:
    """The iterator may store into an element that is another process's by then."""
    with dialer(by_content.cgroup, dial, by_content.to) as running:
        assert running.ask() == "OK"
        entry = entry_of(by_content, running.pid)
        assert entry.holds(entry.digest)
        entry.digest.exec_id ^= 1
        for _ in range(20):
            put_entry(by_content, running.pid, entry)
            said = running.ask()
            if said == NO_LICENSE:
                break  # else the daemon, which goes over all processes now and then, was quicker
        assert said == NO_LICENSE
