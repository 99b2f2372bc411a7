# SPDX-License-Identifier: Apache-2.0
"""Executables by their content: what is measured, when, and what stays unknown.

The table in docs/reference/identity.md gives these answers; each test is one of its rows.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.harness.dial import Dialer, answer_of, dialer, install, settle, started_now
from tests.kernel.harness.probes import eventually
from tests.kernel.harness.subjects import NO_LICENSE, Rules, entry_of, path_of, sha256, until

from licagent.host.measurable import FRESH_NS

pytest_plugins = ["tests.kernel.harness.fixtures"]


def test_the_program_of_the_content(by_content: Rules, dial: Path, other: Path) -> None:
    assert answer_of(by_content.cgroup, dial, by_content.to) == "OK"
    assert answer_of(by_content.cgroup, other, by_content.to) == NO_LICENSE


def test_an_overwritten_program_loses_its_content(
    by_content: Rules, dial: Path, other: Path
) -> None:
    original = dial.read_bytes()

    dial.write_bytes(other.read_bytes())
    assert answer_of(by_content.cgroup, dial, by_content.to) == NO_LICENSE

    dial.write_bytes(original)  # another version of the file, though the bytes are the same
    until("OK", by_content, dial)


def test_an_overwritten_program_is_refused_with_the_daemon_dead(
    by_content: Rules, dial: Path
) -> None:
    by_content.agent.kill()
    assert answer_of(by_content.cgroup, dial, by_content.to) == "OK"
    with dial.open("ab") as file:
        file.write(b"more")

    assert answer_of(by_content.cgroup, dial, by_content.to) == NO_LICENSE


def test_a_changed_time_stamp_is_measured_again(by_content: Rules, dial: Path) -> None:
    os.utime(dial)

    until("OK", by_content, dial)


def test_a_program_that_was_written_this_moment_is_measured_soon(rules: Rules, dial: Path) -> None:
    """What it runs counts from its next exec: within a tick the file may have held more than one
    content."""
    rules.allow(sha256(dial))
    fresh = dial.with_name("fresh")
    # Within 20 ms of a change a file is not measured: the daemon has to come back to it.
    for _ in range(10):
        install(fresh)
        with started_now(rules.cgroup, fresh, rules.to) as running:
            running.until("OK", again=f"exec {fresh}")


def test_a_program_that_was_written_this_moment_is_unknown_until_it_is_executed_again(
    rules: Rules, dial: Path
) -> None:
    rules.allow(sha256(dial))
    fresh = dial.with_name("fresh")
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            install(fresh)
            running = stack.enter_context(started_now(rules.cgroup, fresh, rules.to))
            exec_ns = entry_of(rules, running.pid).exec_ns
            ago_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - exec_ns
            if time.time_ns() - ago_ns - fresh.stat().st_ctime_ns < FRESH_NS:
                break
        else:
            pytest.skip("this machine starts nothing within a tick")
        until("OK", rules, fresh)
        running.stays(NO_LICENSE)
        running.become(f"exec {fresh}")
        assert running.ask() == "OK"


def test_a_process_keeps_the_content_that_was_measured_over_an_upgrade(
    by_content: Rules, dial: Path
) -> None:
    original = sha256(dial)
    with dialer(by_content.cgroup, dial, by_content.to) as running:
        assert running.ask() == "OK"
        install(dial, variant="upgraded")

        assert running.ask() == "OK"
        assert answer_of(by_content.cgroup, dial, by_content.to) == NO_LICENSE
        by_content.allow(original)  # a new policy changes nothing of it
        assert running.ask() == "OK"


def test_a_process_whose_file_changed_before_it_was_measured_stays_unknown(
    by_path: Rules, dial: Path
) -> None:
    """Taking a file from its folder changes it: what was in it at exec cannot be told any more."""
    digest = sha256(dial)
    with dialer(by_path.cgroup, dial, by_path.to) as running:
        assert running.ask() == "OK"
        dial.unlink()
        by_path.allow(digest)
        running.stays(NO_LICENSE)


def test_a_program_in_memory_has_no_path_and_no_content(
    by_path: Rules, dial: Path, other: Path
) -> None:
    def in_memory(running: Dialer) -> list[str]:
        answers = [running.ask()]
        running.become(f"memfd {dial}")
        return [*answers, running.ask(), running.ask("fork")]

    with dialer(by_path.cgroup, dial, by_path.to) as running:
        assert in_memory(running) == ["OK", NO_LICENSE, NO_LICENSE]
    by_path.allow(sha256(dial))
    until("OK", by_path, dial)
    with dialer(by_path.cgroup, dial, by_path.to) as running:
        assert in_memory(running) == ["OK", NO_LICENSE, NO_LICENSE]
        running.stays(NO_LICENSE)  # also when the daemon has had every chance to look at it


def test_a_deleted_program_stays_what_it_was(by_content: Rules, dial: Path) -> None:
    with dialer(by_content.cgroup, dial, by_content.to) as running:
        answers = [running.ask()]
        by_content.allow(path_of(dial), sha256(dial))
        dial.unlink()
        answers.append(running.ask())

    assert answers == ["OK", "OK"]


@pytest.fixture
def stopped(rules: Rules) -> Iterator[Rules]:
    """The daemon is dead; the kernel goes on."""
    yield rules
    if rules.agent.process is None:
        rules.agent.start()


def test_programs_are_known_from_their_first_instruction_with_the_daemon_dead(
    stopped: Rules, dial: Path, other: Path
) -> None:
    stopped.allow(path_of(dial))
    stopped.agent.kill()

    assert answer_of(stopped.cgroup, dial, stopped.to) == "OK"
    assert answer_of(stopped.cgroup, other, stopped.to) == NO_LICENSE
    install(dial, variant="upgraded")
    assert answer_of(stopped.cgroup, dial, stopped.to) == "OK"


def test_a_program_that_started_while_the_daemon_was_dead_is_measured_when_it_is_back(
    stopped: Rules, dial: Path
) -> None:
    stopped.allow(sha256(dial))
    stopped.agent.kill()
    copy = settle(Path(shutil.copy2(dial, dial.with_name("copy"))))
    with dialer(stopped.cgroup, copy, stopped.to) as running:
        assert running.ask() == NO_LICENSE

        stopped.agent.start()
        running.until("OK")


def test_the_programs_of_a_package_manager_run_in_order(rules: Rules, dial: Path) -> None:
    """A measured program that is replaced again and again is never taken for another one."""
    good = dial.read_bytes()
    rules.allow(sha256(dial))
    for number in range(10):
        install(dial, variant=f"bad {number}")
        assert answer_of(rules.cgroup, dial, rules.to) == NO_LICENSE
        install(dial)
        assert dial.read_bytes() == good
        until("OK", rules, dial)


@pytest.fixture
def tmpfs(folder: Path) -> Iterator[Path]:
    memory = folder / "tmpfs"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", memory], check=True)
    try:
        yield memory
    finally:
        # While the daemon reads a file of it, it is busy.
        eventually(
            lambda: subprocess.run(["umount", memory], check=False).returncode == 0, "unmounted"
        )


def test_in_memory_only_what_root_alone_can_write_has_a_content(
    rules: Rules, dial: Path, tmpfs: Path
) -> None:
    """A mapping can change a file on tmpfs without moving its change time."""
    program = install(tmpfs / "dial", mode=0o757)
    rules.allow(path_of(program))
    assert answer_of(rules.cgroup, program, rules.to) == "OK", "its path counts"

    rules.allow(sha256(dial))
    until("OK", rules, dial)
    with dialer(rules.cgroup, program, rules.to) as running:
        running.stays(NO_LICENSE)
    program.chmod(0o755)
    until("OK", rules, program)
