# SPDX-License-Identifier: Apache-2.0
"""Storage footprint over time: who held how many bytes for how long.

A measured size holds until the next measurement. Durations are CLOCK_BOOTTIME within a boot, so
a step of the wall clock makes no bytes; across boots they are wall-clock time, and estimated.

    footprints = Footprints(specs, clock=..., baseline=ledger.marks.get("footprint", b""))
    sample = footprints.sample()            # blocks; call it from a thread, at every interval
    ledger.commit([... sample.rows ...], {"footprint": sample.baseline})
    footprints.committed(sample)            # not called: the next sample covers that time again
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from licagent.domain.footprint import FootprintKind, FootprintSpec
from licagent.domain.usage import Quality


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment in both clocks."""

    boot_id: str
    boottime_ms: int
    unix_ms: int


@dataclass(frozen=True, slots=True)
class FootprintRow:
    """What one footprint held since its last committed row: a STORAGE record."""

    name: str
    kind: FootprintKind
    path: str
    resource: str
    uid: int
    """-1 except for USER."""
    user: str
    project: int
    """-1 except for PROJECT."""
    start_unix_ms: int
    end_unix_ms: int
    stored_byte_ms: int
    stored_bytes: int
    """At the end."""
    inodes: int
    quality: Quality
    detail: str
    """Why it is estimated, what could not be read, which time is not in it; for people."""
    uncounted_ms: int = 0
    """Time before `start_unix_ms` that no record has (longer than the bound): a GAP."""


@dataclass(frozen=True, slots=True)
class FootprintSample:
    """Rows to commit, and the baseline that goes with them."""

    rows: tuple[FootprintRow, ...]
    baseline: bytes
    """For the ledger's marks, in the same frame as `rows`."""


@dataclass(frozen=True, slots=True)
class FootprintState:
    """How one footprint is, for `status` and `top`."""

    name: str
    kind: FootprintKind
    path: str
    resource: str
    uid: int
    project: int
    stored_bytes: int
    inodes: int
    measured_unix_ms: int
    """0: not yet."""
    walked_entries: int
    """Of the walk that is under way; 0 if none is."""
    source: str
    """"quota" or "walk"."""
    problem: str
    """"" or what is in the way, for people."""


class Footprints:
    """Measures when due, integrates, and remembers what was committed."""

    def __init__(
        self,
        specs: Sequence[FootprintSpec],
        *,
        clock: Callable[[], Instant],
        baseline: bytes = b"",
    ) -> None:
        """`baseline` is that of the last committed sample; b"" for none."""
        raise NotImplementedError

    def sample(self, *, final: bool = False) -> FootprintSample:
        """Measure what is due and give what was held since the last commit.

        Blocks for quota calls only: walks run in a child process, and count when they end. Rows
        come for footprints measured since the last commit; with `final` (the agent ends) for all.
        Without rows the baseline has not moved and nothing needs a commit.
        """
        raise NotImplementedError

    def committed(self, sample: FootprintSample) -> None:
        """`sample` is on disk."""
        raise NotImplementedError

    def states(self) -> tuple[FootprintState, ...]:
        """The last measurements."""
        raise NotImplementedError

    def close(self) -> None:
        """End a walk that is under way."""
        raise NotImplementedError
