# SPDX-License-Identifier: Apache-2.0
"""Every nanosecond once, however threads live and end between, before and during samples."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licagent.metering.fallback.identity import Identity
from licagent.metering.fallback.tally import NOTHING, Amount, Owner, Tally, Used
from licagent.metering.fallback.taskstats_source import TaskstatsSource

sys.path.insert(0, str(Path(__file__).parent))
from fake_kernel import FakeKernel  # type: ignore[import-not-found]

SEEDS = st.integers(0, 2**32)


class Watched:
    """A fake kernel, its source, and what all sheets of it had."""

    def __init__(self, kernel: Any, baseline: bytes = b"") -> None:
        self.kernel = kernel
        self.tally = Tally()
        resumed = self.tally.resume(baseline, "boot") >= 0
        self.source = TaskstatsSource(
            self.tally, kernel, stats=kernel, events=lambda: kernel, pids=kernel.pids
        )
        self.source.begin(resumed=resumed)
        self.tally.resumed()
        self.counted = Amount()
        self.by_uid: dict[int, int] = {}

    def close_sheet(self) -> bytes:
        self.source.collect()
        for owner, amount in self.tally.take_sheet().items():
            self.counted.cpu_ns += amount.cpu_ns
            self.counted.read_bytes += amount.read_bytes
            self.counted.processes += amount.processes
            uid = owner.identity.uid
            self.by_uid[uid] = self.by_uid.get(uid, 0) + amount.cpu_ns
        return self.tally.baseline("boot", 1)


def run(kernel: Any, watched: Watched, rounds: int) -> None:
    for _ in range(rounds):
        for _ in range(kernel.random.randrange(25)):
            kernel.step()
            if kernel.random.random() < 0.1:
                watched.source.drain()
        watched.close_sheet()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, tells_process=st.booleans())
def test_nothing_is_lost_and_nothing_twice(seed: int, tells_process: bool) -> None:
    kernel = FakeKernel(Random(seed), tells_process=tells_process)
    for _ in range(30):
        kernel.step()
    used_before, ended_before = kernel.used_ns, kernel.ended_processes
    watched = Watched(kernel)
    run(kernel, watched, 12)
    assert watched.counted.cpu_ns == kernel.used_ns - used_before
    if tells_process:
        assert watched.counted.processes == kernel.ended_processes - ended_before


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_nor_while_it_looks(seed: int) -> None:
    """Threads begin, work and end between any two of the sampler's questions."""
    kernel = FakeKernel(Random(seed))
    watched = Watched(kernel)
    kernel.steps_a_call = 1
    for _ in range(12):
        watched.close_sheet()
    kernel.steps_a_call = 0
    watched.close_sheet()
    watched.close_sheet()
    assert watched.counted.cpu_ns == kernel.used_ns
    assert watched.counted.processes == kernel.ended_processes


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_a_restart_counts_what_lived_on(seed: int) -> None:
    kernel = FakeKernel(Random(seed))
    first = Watched(kernel)
    run(kernel, first, 4)
    baseline = first.close_sheet()
    counted = first.counted.cpu_ns
    assert counted == kernel.used_ns
    # Killed: what it sampled and heard from here on is gone with it.
    for _ in range(10):
        kernel.step(exec_too=False)
        first.source.drain()
    first.source.collect()
    kernel.records, kernel.events = [], []
    lost_at_most = kernel.used_ns - counted
    second = Watched(kernel, baseline)
    second.close_sheet()
    resumed = second.counted.cpu_ns
    assert 0 <= resumed <= lost_at_most
    run(kernel, second, 4)
    assert second.counted.cpu_ns - resumed == kernel.used_ns - counted - lost_at_most


def test_a_baseline_of_another_boot_or_damaged_is_not_used() -> None:
    tally = Tally()
    tally.sampled(7, 1, Identity(), [(7, Used(5, 0, 0, 0))])
    baseline = tally.baseline("boot", 3)
    assert Tally().resume(baseline, "boot") == 3
    for bad, boot in ((baseline, "next"), (b"", "boot"), (baseline[:-4], "boot"), (b"x", "boot")):
        assert Tally().resume(bad, boot) == -1


def rows(tally: Tally) -> dict[Owner, int]:
    return {owner: amount.cpu_ns for owner, amount in tally.take_sheet().items() if amount}


def test_a_thread_that_takes_the_leaders_place_keeps_its_count() -> None:
    tally = Tally()
    me = Identity(uid=5)
    tally.sampled(7, 1, me, [(7, Used(10, 0, 0, 0)), (8, Used(100, 0, 0, 0))])
    assert sum(rows(tally).values()) == 110
    tally.ended(7, 7, Used(11, 0, 0, 0), me, is_last=False)
    tally.sampled(7, 1, me, [(7, Used(103, 0, 0, 0))])
    assert sum(rows(tally).values()) == 1 + 3


def test_what_it_used_before_exec_was_another_executables() -> None:
    tally = Tally()
    shell, child = Identity(executable="/bin/sh"), Identity(executable="/bin/true")
    tally.sampled(7, 1, shell, [(7, Used(10, 0, 0, 0))])
    tally.became(7, child)
    tally.ended(7, 7, Used(15, 0, 0, 0), Identity(), is_last=True)
    assert {owner.identity.executable: cpu for owner, cpu in rows(tally).items()} == {
        "/bin/sh": 10,
        "/bin/true": 5,
    }


def test_short_lives_are_one_row_and_have_their_parents_cgroup() -> None:
    tally = Tally()
    tally.sampled(7, 1, Identity(cgroup_path="/a.service"), [(7, NOTHING)])
    for pid in (20, 21, 22):
        tally.born(pid, 7)
        tally.ended(pid, pid, Used(4, 0, 0, 0), Identity(uid=3, comm="true"), is_last=True)
    sheet = tally.take_sheet()
    (owner,) = [owner for owner, amount in sheet.items() if amount]
    assert (owner.pid, owner.start_ns) == (0, 0)
    assert (owner.identity.cgroup_path, owner.identity.uid) == ("/a.service", 3)
    assert (sheet[owner].cpu_ns, sheet[owner].processes) == (12, 3)


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_record_loses_only_the_last_stretch(lost: bool) -> None:
    tally = Tally()
    tally.sampled(7, 1, Identity(), [(7, Used(10, 0, 0, 0))])
    before = tally.known()
    if not lost:
        tally.ended(7, 7, Used(12, 0, 0, 0), Identity(), is_last=True)
    tally.forget(before, set(), set())
    # The id comes again.
    tally.sampled(7, 9, Identity(), [(7, Used(3, 0, 0, 0))])
    assert sum(rows(tally).values()) == 10 + (0 if lost else 2) + 3
