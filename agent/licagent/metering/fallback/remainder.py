# SPDX-License-Identifier: Apache-2.0
"""CPU time that exit records do not have, given to those that ended.

A record has what the scheduler had booked by then: not the time since its last booking (a tick
at most), nor the taking down of memory. For a storm of short threads that is most of it. The
cgroup's own counter has all, so what it has more than the rows is divided among the rows of that
cgroup by how many threads ended in each: exact for the cgroup, an estimate for each row.

It gives no more than `LARGEST_END_NS` for each end. What is beyond that, as after a process was
moved between cgroups, stays with the host's unattributed use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from licagent.metering.fallback.tally import Amount, Owner

LARGEST_END_NS: Final = 11_000_000
"""A tick at 100 Hz, and the taking down of a process."""


class Remainders:
    """The counters of all cgroups, and what was taken of them."""

    def __init__(self, root: str) -> None:
        """`root` is where cgroup v2 is mounted; "" where it is not: then nothing is divided."""
        self._root = root
        self._before = dict(self._totals())
        self._ahead: dict[str, int] = {}
        """By cgroup: what rows had that its counter had not yet."""

    def divide(self, sheet: Mapping[Owner, Amount]) -> None:
        """Add to the rows of a sheet that is being closed what they lack."""
        if not self._root:
            return
        now = dict(self._totals())
        used = {path: total - self._before.get(path, 0) for path, total in now.items()}
        own = dict(used)
        for below, duration in used.items():
            above = below.rpartition("/")[0]
            if above in own:
                own[above] -= duration
        self._before = now
        rows: dict[str, list[Amount]] = {}
        for owner, amount in sheet.items():
            path = owner.identity.cgroup_path
            # A cgroup that was removed has left what it used to the one above it.
            while path and path not in own:
                path = path.rpartition("/")[0]
            if path:
                rows.setdefault(path, []).append(amount)
        ahead = {}
        for path, amounts in rows.items():
            lacking = own[path] - sum(row.cpu_ns for row in amounts) - self._ahead.get(path, 0)
            if lacking > 0:
                _give(amounts, lacking)
            else:
                # Bounded: a process that was moved here brought all its time with it.
                ahead[path] = min(-lacking, LARGEST_END_NS * (os.cpu_count() or 1))
        self._ahead = ahead

    def _totals(self) -> Iterator[tuple[str, int]]:
        """Path and nanoseconds of every cgroup but the root, descendants included."""
        if not self._root:
            return
        for folder, _, files in os.walk(self._root):
            path = folder[len(self._root) :]
            if path and "cpu.stat" in files:
                try:
                    with open(f"{folder}/cpu.stat", "rb") as file:
                        first = file.readline().split()
                except OSError:
                    continue  # removed meanwhile
                if first[:1] == [b"usage_usec"]:
                    yield path, int(first[1]) * 1000


def _give(amounts: list[Amount], lacking: int) -> None:
    ends = sum(row.ends for row in amounts)
    if not ends:
        return
    lacking = min(lacking, ends * LARGEST_END_NS)
    for row in amounts:
        row.cpu_ns += lacking * row.ends // ends
