# SPDX-License-Identifier: Apache-2.0
"""Whose file is read next: turns of equal size for each owner of files.

A lane is (owner, whether the file is large): what an owner runs does not wait for his own large
files, and nobody's for another one's. What root alone can write is a lane of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from licagent.host.hashing import Reading
from licagent.host.measurable import Found

LARGE_BYTES: Final = 8 * 1024 * 1024
LANE_MAX: Final = 128
JOBS_MAX: Final = 512
"""Of all others than root; root's own two lanes end at LANE_MAX each."""
WAITERS_MAX: Final = 64
ROOT_ALONE: Final = -1
"""The owner of what root alone can write; any other owner is a uid."""


@dataclass(frozen=True, slots=True, order=True)
class Started:
    """A process that began to run a file."""

    pid: int
    exec_ns: int


@dataclass(slots=True, eq=False)
class Job:
    """A file that waits for its turn, or is in the middle of it."""

    found: Found
    waiters: list[tuple[Started, int]] = field(default_factory=list)
    """Processes that run it, and how often each was put off already."""
    is_for_all: bool = False
    """Found in a folder, named by a policy, or run by more processes than are remembered."""
    is_waited_for: bool = False
    """Somebody waits for it before a policy comes into force."""
    reading: Reading | None = None

    @property
    def owner(self) -> int:
        """Who answers for it: a uid, or ROOT_ALONE."""
        return ROOT_ALONE if self.found.is_roots else self.found.owner

    @property
    def lane(self) -> tuple[int, bool]:
        """Where it waits."""
        return self.owner, self.found.info.st_size > LARGE_BYTES

    def add(self, waiter: tuple[Started, int] | None) -> None:
        """Somebody else wants it: a process, or None for all that run it."""
        if waiter is not None and len(self.waiters) < WAITERS_MAX:
            self.waiters.append(waiter)
        else:
            self.is_for_all = True

    def close(self) -> None:
        """Give the file back."""
        if self.reading is not None:
            self.reading.close()
        self.found.close()


class Lanes:
    """Jobs by lane. For one thread."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, bool], deque[Job]] = {}  # in the order of their turns
        self._count = 0

    def __len__(self) -> int:
        """How many jobs there are."""
        return self._count

    @property
    def roots(self) -> int:
        """How many files wait that root alone can write."""
        return sum(len(self._lanes.get((ROOT_ALONE, is_large), ())) for is_large in (False, True))

    def put(self, job: Job) -> Job | None:
        """Add a job at the end of its lane; the job that had to go for want of room, if any."""
        lane = self._lanes.get(job.lane, deque())
        if len(lane) >= LANE_MAX:
            return job
        dropped = None
        # What root alone can write has a place of its own, whatever others have waiting.
        if job.owner != ROOT_ALONE and self._count - self.roots >= JOBS_MAX:
            others = (each for of, each in self._lanes.items() if of[0] != ROOT_ALONE)
            longest = max(others, key=len)
            # Whoever has as many already pushes out nobody.
            if len(longest) <= len(lane) + 1:
                return job
            dropped = longest[-1]
            self.remove(dropped)
        self._lanes.setdefault(job.lane, lane).append(job)
        self._count += 1
        return dropped

    def next(self, *, roots_only: bool) -> Job | None:
        """The job whose turn it is; the next call takes another lane's."""
        for lane in self._lanes:
            if not roots_only or lane[0] == ROOT_ALONE:
                waiting = self._lanes.pop(lane)
                self._lanes[lane] = waiting
                return waiting[0]
        return None

    def begun(self) -> Iterator[Job]:
        """The jobs that hold a lease: the first of some lanes."""
        return (lane[0] for lane in self._lanes.values() if lane[0].reading is not None)

    def remove(self, job: Job) -> None:
        """Take a job out."""
        lane = self._lanes[job.lane]
        lane.remove(job)
        self._count -= 1
        if not lane:
            del self._lanes[job.lane]
