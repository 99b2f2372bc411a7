# SPDX-License-Identifier: Apache-2.0
"""Turns of owners, and that every queue has an end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import count

import pytest

from licagent.host.executables import FileIdentity
from licagent.host.lanes import JOBS_MAX, LANE_MAX, LARGE_BYTES, WAITERS_MAX, Job, Lanes, Started
from licagent.host.measurable import Found

_NUMBERS = count(1)


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes()
    yield made
    while (job := made.next(roots_only=False)) is not None:
        made.remove(job)
        job.close()


def job(owner: int, size_bytes: int = 1, mode: int = 0o755) -> Job:
    number = next(_NUMBERS)
    info = os.stat_result((stat.S_IFREG | mode, number, 1, 1, owner, owner, size_bytes, 0, 0, 0))
    fd = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    return Job(Found(f"/{number}", fd, FileIdentity(1, number, 1), info))


def put(lanes: Lanes, *jobs: Job) -> None:
    for each in jobs:
        assert lanes.put(each) is None


def turns(lanes: Lanes, number: int, *, roots_only: bool = False) -> list[Job | None]:
    """Jobs that are done at their turn."""
    found = []
    for _ in range(number):
        taken = lanes.next(roots_only=roots_only)
        found.append(taken)
        if taken is not None:
            lanes.remove(taken)
            taken.close()
    return found


def test_owners_take_turns_however_much_one_of_them_has(lanes: Lanes) -> None:
    many = [job(1) for _ in range(5)]
    one, roots = job(2), job(0)
    put(lanes, *many, one, roots)

    assert turns(lanes, 5) == [many[0], one, roots, many[1], many[2]]
    assert len(lanes) == 2


def test_a_large_file_comes_again_and_lets_all_others_go_between(lanes: Lanes) -> None:
    large = job(1, LARGE_BYTES + 1)
    small = [job(1), job(2)]
    put(lanes, large, *small)

    assert lanes.next(roots_only=False) is large
    assert lanes.next(roots_only=False) is small[0]
    assert lanes.next(roots_only=False) is small[1]
    assert lanes.next(roots_only=False) is large


def test_what_others_may_write_is_not_roots(lanes: Lanes) -> None:
    written_by_others = job(0, mode=0o775)
    put(lanes, written_by_others)
    assert lanes.roots == 0
    assert lanes.next(roots_only=True) is None

    roots = job(0)
    put(lanes, roots)
    assert lanes.roots == 1
    assert turns(lanes, 2, roots_only=True) == [roots, None]
    assert turns(lanes, 1) == [written_by_others]


def test_a_lane_has_an_end(lanes: Lanes) -> None:
    put(lanes, *(job(1) for _ in range(LANE_MAX)))
    late = job(1)
    assert lanes.put(late) is late
    late.close()
    put(lanes, job(2))
    assert len(lanes) == LANE_MAX + 1


def test_all_lanes_have_an_end_and_the_longest_gives_way(lanes: Lanes) -> None:
    for owner in range(1, 1 + JOBS_MAX // LANE_MAX):
        put(lanes, *(job(owner) for _ in range(LANE_MAX)))
    modest = job(9_999)

    dropped = lanes.put(modest)

    assert dropped is not None
    assert dropped is not modest
    dropped.close()
    assert len(lanes) == JOBS_MAX
    assert modest in turns(lanes, 1 + JOBS_MAX // LANE_MAX)


def test_however_many_others_there_are_roots_files_stay(lanes: Lanes) -> None:
    """A user with subordinate uids is many owners."""
    roots = [job(0) for _ in range(20)]
    put(lanes, *roots)
    put(lanes, *(job(owner) for owner in range(1, 1 + JOBS_MAX)))
    for owner in range(10_000, 10_100):
        late = job(owner)
        assert lanes.put(late) is late, "whoever has as many pushes out nobody"
        late.close()
    assert lanes.roots == len(roots)
    more = job(0)
    assert lanes.put(more) is None
    assert turns(lanes, 21, roots_only=True) == [*roots, more]


def test_one_that_answers_for_many_uids_has_one_lane(lanes: Lanes) -> None:
    first, second, other = job(100_001), job(100_002), job(2_000)
    first.found.answerable = second.found.answerable = 1_000
    put(lanes, first, second, other)
    assert turns(lanes, 3) == [first, other, second]


def test_waiters_beyond_some_are_all_who_run_it() -> None:
    one = job(1)
    for pid in range(WAITERS_MAX):
        one.add((Started(pid, 1), 0))
    assert not one.is_for_all
    one.add((Started(WAITERS_MAX, 1), 0))
    assert one.is_for_all
    assert len(one.waiters) == WAITERS_MAX
    one.close()
