# SPDX-License-Identifier: Apache-2.0
"""From when on an exec counts, whatever happens to the wall clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from licagent.daemon.exec_times import ExecTimes
from licagent.host.measurable import FRESH_NS

S: Final = 1_000_000_000
HOUR: Final = 3600 * S


class Host:
    """A machine whose wall clock is set now and then; what the daemon keeps outlives it."""

    def __init__(self) -> None:
        self.boot_ns = 1000 * S
        self.offset_ns = 1_700_000_000 * S
        self.kept: tuple[int, int, int] | None = None
        self.times = self.daemon()

    def read(self) -> tuple[int, int, int] | None:
        return self.kept

    def write(self, offset_ns: int, lowest_ns: int, since_ns: int) -> None:
        self.kept = (offset_ns, lowest_ns, since_ns)

    def daemon(self) -> ExecTimes:
        return ExecTimes(
            self, wall_ns=lambda: self.boot_ns + self.offset_ns, boot_ns=lambda: self.boot_ns
        )

    def written(self) -> int:
        """The change time of a file that is written now."""
        return self.boot_ns + self.offset_ns

    def passes(self, seconds: float) -> None:
        self.boot_ns += int(seconds * S)

    def counts(self, exec_ns: int, ctime_ns: int) -> bool:
        return exec_ns >= self.times.look().from_ns(ctime_ns)


@pytest.fixture
def host() -> Host:
    return Host()


def test_an_exec_after_the_tick_of_the_last_write_counts(host: Host) -> None:
    ctime_ns, at_ns = host.written(), host.boot_ns
    host.passes(60)

    assert not host.counts(at_ns, ctime_ns)
    assert not host.counts(at_ns + FRESH_NS, ctime_ns)
    assert host.counts(at_ns + FRESH_NS + 3_000_000, ctime_ns)


def test_what_was_written_before_the_boot_counts_for_all(host: Host) -> None:
    assert host.counts(0, host.written() - 2 * host.boot_ns)


def test_an_exec_after_the_reading_counts_wherever_the_wall_clock_stands(host: Host) -> None:
    ctime_ns = host.written()
    host.offset_ns -= HOUR
    host.passes(60)

    assert host.counts(host.boot_ns, ctime_ns)
    assert not host.counts(host.boot_ns - 1, ctime_ns)


STEPS: Final[dict[str, Callable[[Host], None]]] = {
    "forward": lambda host: host.__setattr__("offset_ns", host.offset_ns + HOUR),
    "back": lambda host: host.__setattr__("offset_ns", host.offset_ns - HOUR),
}


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("second", [None, *STEPS])
@pytest.mark.parametrize("first", STEPS)
def test_setting_the_wall_clock_makes_no_early_exec_count(
    host: Host, first: str, second: str | None, restarts: bool
) -> None:
    for step in (first, second):
        ctime_ns, at_ns = host.written(), host.boot_ns
        if step is not None:
            STEPS[step](host)
        for _ in range(3):
            host.passes(30)
            if restarts:
                host.times = host.daemon()
            assert not host.counts(at_ns, ctime_ns)
            assert not host.counts(at_ns + FRESH_NS, ctime_ns)


def test_an_old_file_counts_for_a_process_from_before_the_wall_clock_was_set(host: Host) -> None:
    ctime_ns = host.written() - 10 * HOUR
    at_ns = host.boot_ns
    host.passes(60)
    host.offset_ns += HOUR

    assert host.counts(at_ns, ctime_ns)


def test_after_the_wall_clock_was_set_forward_files_count_after_their_tick(host: Host) -> None:
    """Also on a machine without a clock of its own, which begins in 1970."""
    host.offset_ns += 50 * 365 * 24 * HOUR
    host.times.look()
    host.passes(5)
    ctime_ns, at_ns = host.written(), host.boot_ns
    host.passes(60)

    assert not host.counts(at_ns, ctime_ns)
    assert host.counts(at_ns + 2 * FRESH_NS, ctime_ns)


def test_a_look_that_takes_long_is_no_step(host: Host) -> None:
    ctime_ns, at_ns = host.written(), host.boot_ns
    host.passes(60)

    def slow() -> int:
        host.passes(0.5)
        return host.boot_ns

    times = ExecTimes(host, wall_ns=lambda: host.boot_ns + host.offset_ns, boot_ns=slow)
    kept = host.kept
    times.look()

    assert host.kept == kept
    assert host.counts(at_ns + 2 * FRESH_NS, ctime_ns)
