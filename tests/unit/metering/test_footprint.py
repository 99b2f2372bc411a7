# SPDX-License-Identifier: Apache-2.0
"""Footprints from the setting to rows that can be billed, over restarts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from licagent.domain.footprint import FootprintKind, FootprintSpec, fault_of
from licagent.domain.usage import Quality
from licagent.metering.footprint import Footprints, FootprintSample, Instant
from licagent.metering.inodes import WalkTask
from licagent.metering.project_quota import FilesystemQuota, QuotaOff, QuotaType
from licagent.metering.walker import WalkDone, Walker


class Clock:
    """Boot time that the test moves; a walk's own end is of the real one."""

    def __init__(self) -> None:
        self.ahead_ms = 0
        self.boot_id = "boot"

    def __call__(self) -> Instant:
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        unix = time.time_ns() // 1_000_000
        return Instant(self.boot_id, boottime + self.ahead_ms, unix + self.ahead_ms)


@contextmanager
def running(
    *specs: FootprintSpec, clock: Clock | None = None, baseline: bytes = b""
) -> Iterator[Footprints]:
    footprints = Footprints(specs, clock=clock or Clock(), baseline=baseline)
    try:
        yield footprints
    finally:
        footprints.close()


def measured(footprints: Footprints, since_unix_ms: int = 0) -> FootprintSample:
    """Sample until everything was measured after `since_unix_ms`."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        sample = footprints.sample()
        if all(state.measured_unix_ms > since_unix_ms for state in footprints.states()):
            return sample
        time.sleep(0.02)
    raise AssertionError(footprints.states())


def test_rows_come_with_the_second_measurement_and_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    os.sync()
    clock = Clock()
    spec = FootprintSpec("data", str(tmp_path), resource="tier", every_s=5)
    with running(spec, clock=clock) as footprints:
        assert measured(footprints).rows == ()
        (state,) = footprints.states()
        assert state.stored_bytes > 100_000
        clock.ahead_ms += 5_000
        sample = measured(footprints, state.measured_unix_ms)
        (row,) = sample.rows
        assert (row.name, row.kind, row.resource) == ("data", FootprintKind.PATH, "tier")
        assert row.stored_byte_ms == state.stored_bytes * (row.end_unix_ms - row.start_unix_ms)
        assert row.quality is Quality.EXACT
        (again,) = footprints.sample().rows
        assert again == row  # not committed: the same time again
        footprints.committed(sample)
        assert footprints.sample().rows == ()


def test_a_restart_goes_on_from_the_baseline(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    spec = FootprintSpec("data", str(tmp_path), every_s=5)
    with running(spec) as footprints:
        measured(footprints)
        sample = footprints.sample(final=True)
        footprints.committed(sample)
        first_end = footprints.states()[0].measured_unix_ms
    with running(spec, baseline=sample.baseline) as footprints:
        (row,) = measured(footprints, first_end).rows
        assert abs(row.start_unix_ms - first_end) <= 1
        assert row.stored_byte_ms > 0


def test_the_end_of_the_agent_is_the_end_of_a_row(tmp_path: Path) -> None:
    spec = FootprintSpec("data", str(tmp_path), every_s=300)
    clock = Clock()
    with running(spec, clock=clock) as footprints:
        measured(footprints)
        clock.ahead_ms += 1_000
        (row,) = footprints.sample(final=True).rows
        assert row.end_unix_ms - row.start_unix_ms >= 1_000


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    specs = [
        FootprintSpec("gone", str(tmp_path / "gone")),
        FootprintSpec("nobody", str(tmp_path), user="no-such-user-here"),
    ]
    with running(*specs) as footprints:
        deadline = time.monotonic() + 30
        while not footprints.states()[0].problem and time.monotonic() < deadline:
            footprints.sample()
            time.sleep(0.02)
        problems = {state.name: state.problem for state in footprints.states()}
    assert problems == {
        "gone": f"{tmp_path / 'gone'} is not there",
        "nobody": "no user 'no-such-user-here' on this host",
    }


def finished(walker: Walker) -> list[WalkDone]:
    done: list[WalkDone] = []
    deadline = time.monotonic() + 30
    while walker.is_busy and time.monotonic() < deadline:
        done += walker.poll()
        time.sleep(0.01)
    return done


def test_one_walk_that_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    walker = Walker()
    try:
        walker.start([WalkTask("first", "/"), WalkTask("second", str(tmp_path))])
        assert walker._child is not None
        os.kill(walker._child.pid, signal.SIGKILL)
        first, second = finished(walker)
    finally:
        walker.close()
    assert (first.name, first.walked) == ("first", None)
    assert first.problem == "the walk ended with -9"
    assert second.walked is not None
    assert second.walked.is_whole


def test_a_walk_that_hangs_is_ended(tmp_path: Path) -> None:
    now = 0.0
    walker = Walker(clock=lambda: now)
    try:
        walker.start([WalkTask("first", "/", limit_s=60)])
        assert walker._child is not None
        os.kill(walker._child.pid, signal.SIGSTOP)
        now = 1000.0
        (done,) = walker.poll()
    finally:
        walker.close()
    assert done.problem == "the walk hung and was ended"
    assert walker._child is None


def test_a_filesystem_without_quota_says_so() -> None:
    with FilesystemQuota("/proc") as quota, pytest.raises((QuotaOff, PermissionError)):
        quota.of(QuotaType.PROJECT, 7)
    with FilesystemQuota("/proc") as quota, pytest.raises((QuotaOff, PermissionError)):
        list(quota.every(QuotaType.USER))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, ""),
        ({"name": ""}, "name must"),
        ({"path": "data"}, "must be absolute"),
        ({"path": "/srv/../etc"}, "must be absolute"),
        ({"user": "a", "project": "1"}, "exclude each other"),
        ({"user": "4294967295"}, "is no user id"),
        ({"project": "web"}, "must be a number"),
        ({"project": "*"}, ""),
        ({"user": "*"}, ""),
        ({"every_s": 4}, "every_s must"),
        ({"limit_s": 0}, "limit_s must"),
    ],
)
def test_faults(changed: dict[str, object], fault: str) -> None:
    fields: dict[str, object] = {"name": "data", "path": "/srv", **changed}
    found = fault_of(FootprintSpec(**fields))  # type: ignore[arg-type]
    assert (fault in found) if fault else not found
