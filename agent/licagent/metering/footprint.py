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

import pwd
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from licagent.domain.footprint import EVERY, FootprintKind, FootprintSpec
from licagent.domain.usage import Quality
from licagent.metering.holdings import Accounts, Instant, Key, Measured, Stretch, Totals
from licagent.metering.inodes import ALL, WalkTask
from licagent.metering.project_quota import FilesystemQuota, QuotaOff, QuotaType
from licagent.metering.walker import WalkDone, Walker

__all__ = ["FootprintRow", "FootprintSample", "FootprintState", "Footprints", "Instant"]

LARGEST_OWNERS: Final = 10_000
"""Of a footprint of "*"; what the further ones hold is one line without an owner."""


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
    totals: Mapping[Key, Totals] = field(default_factory=dict, repr=False)
    """What a commit settles; for `Footprints.committed`."""


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
        self._specs: Mapping[str, FootprintSpec] = {spec.name: spec for spec in specs}
        self._clock = clock
        self._accounts = Accounts(baseline, names=frozenset(self._specs))
        self._walker = Walker()
        self._waiting: list[WalkTask] = []
        self._due_ms: dict[str, int] = {}
        self._sources: dict[str, str] = {}
        self._problems: dict[str, str] = {}

    def sample(self, *, final: bool = False) -> FootprintSample:
        """Measure what is due and give what was held since the last commit.

        Blocks for quota calls only: walks run in a child process, and count when they end. Rows
        come for footprints measured since the last commit; with `final` (the agent ends) for all.
        Without rows the baseline has not moved and nothing needs a commit.
        """
        for done in self._walker.poll():
            self._walked(done)
        if final:
            self._accounts.carry_on(self._clock())
        else:
            self._measure_due()
        stretches = self._accounts.stretches()
        rows = tuple(self._row(stretch) for stretch in stretches)
        return FootprintSample(rows, self._accounts.baseline(), self._accounts.totals())

    def committed(self, sample: FootprintSample) -> None:
        """`sample` is on disk."""
        self._accounts.committed(sample.totals)

    def states(self) -> tuple[FootprintState, ...]:
        """The last measurements."""
        walking, entries = self._walker.current
        found = []
        for spec in self._specs.values():
            held = self._accounts.held(spec.name) or [(ALL, 0, 0, 0)]
            for owner, size_bytes, inodes, measured in held:
                found.append(
                    FootprintState(
                        name=spec.name,
                        kind=spec.kind,
                        path=spec.path,
                        resource=spec.resource,
                        uid=owner if spec.kind is FootprintKind.USER else -1,
                        project=owner if spec.kind is FootprintKind.PROJECT else -1,
                        stored_bytes=size_bytes,
                        inodes=inodes,
                        measured_unix_ms=measured,
                        walked_entries=entries if walking == spec.name else 0,
                        source=self._sources.get(spec.name, ""),
                        problem=self._problems.get(spec.name, ""),
                    )
                )
        return tuple(found)

    def close(self) -> None:
        """End a walk that is under way."""
        self._walker.close()

    # ------------------------------------------------------------------ measuring

    def _measure_due(self) -> None:
        now = self._clock()
        for spec in self._specs.values():
            if now.boottime_ms < self._due_ms.get(spec.name, 0):
                continue
            self._due_ms[spec.name] = now.boottime_ms + spec.every_s * 1000
            self._measure(spec)
        if self._waiting and not self._walker.is_busy:
            tasks, self._waiting = self._waiting, []
            self._walker.start(tasks)

    def _measure(self, spec: FootprintSpec) -> None:
        by, owner = "", ALL
        if spec.kind is not FootprintKind.PATH:
            try:
                owner = _number_of(spec)
            except KeyError:
                self._problems[spec.name] = f"no user {spec.user!r} on this host"
                return
            by = spec.kind.value
            if self._measured_by_quota(spec, owner):
                return
        self._sources[spec.name] = "walk"
        if self._walker.current[0] == spec.name or any(
            task.name == spec.name for task in self._waiting
        ):
            return  # the walk takes longer than its interval: the next begins after it
        self._waiting.append(
            WalkTask(spec.name, spec.path, by, owner, spec.cross_devices, float(spec.limit_s))
        )

    def _measured_by_quota(self, spec: FootprintSpec, owner: int) -> bool:
        kind = QuotaType.USER if spec.kind is FootprintKind.USER else QuotaType.PROJECT
        try:
            with FilesystemQuota(spec.path) as quota:
                held = list(quota.every(kind)) if owner == ALL else [quota.of(kind, owner)]
        except QuotaOff:
            return False
        except OSError as error:
            self._problems[spec.name] = f"quota of {spec.path}: {error.strerror or error}"
            return False
        self._sources[spec.name] = "quota"
        self._problems[spec.name] = ""
        sizes = _summed([(one.owner, one.size_bytes, one.inodes) for one in held])
        self._accounts.measured(spec.name, self._clock(), Measured(sizes), spec.every_s * 1000)
        return True

    def _walked(self, done: WalkDone) -> None:
        spec = self._specs[done.name]
        # The wall time is this clock's, not the child's: the agent trusts its own.
        now = self._clock()
        ago_ms = now.boottime_ms - done.boottime_ms
        at = Instant(now.boot_id, done.boottime_ms, now.unix_ms - ago_ms)
        walked = done.walked
        if walked is None:
            self._problems[spec.name] = done.problem
            self._accounts.not_measured(spec.name, at, done.problem)
            return
        note = "; ".join(walked.notes)
        self._problems[spec.name] = f"{spec.path} is not there" if walked.missing else note
        if not walked.is_whole and self._accounts.held(spec.name):
            self._accounts.not_measured(spec.name, at, note)
            return
        sizes = _summed([(owner, *held) for owner, held in walked.held.items()])
        if EVERY not in (spec.user, spec.project):
            sizes.setdefault(done.owner, (0, 0))
        self._accounts.measured(spec.name, at, Measured(sizes, note), spec.every_s * 1000)

    # ------------------------------------------------------------------ rows

    def _row(self, stretch: Stretch) -> FootprintRow:
        spec = self._specs[stretch.name]
        uid = stretch.owner if spec.kind is FootprintKind.USER else -1
        return FootprintRow(
            name=spec.name,
            kind=spec.kind,
            path=spec.path,
            resource=spec.resource,
            uid=uid,
            user=_user_name(uid),
            project=stretch.owner if spec.kind is FootprintKind.PROJECT else -1,
            start_unix_ms=stretch.start_unix_ms,
            end_unix_ms=stretch.end_unix_ms,
            stored_byte_ms=stretch.byte_ms,
            stored_bytes=stretch.size_bytes,
            inodes=stretch.inodes,
            quality=Quality.ESTIMATED if stretch.why_estimated else Quality.EXACT,
            detail=stretch.why_estimated,
            uncounted_ms=stretch.uncounted_ms,
        )


def _number_of(spec: FootprintSpec) -> int:
    """Whose; ALL for each one. KeyError where the host knows no such user."""
    text = spec.user or spec.project
    if text == EVERY:
        return ALL
    return int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name if uid >= 0 else ""
    except KeyError:
        return ""


def _summed(held: Sequence[tuple[int, int, int]]) -> dict[int, tuple[int, int]]:
    """By owner, the largest first; what is beyond the bound under ALL."""
    sizes: dict[int, tuple[int, int]] = {}
    for number, (owner, size, inodes) in enumerate(sorted(held, key=lambda one: -one[1])):
        kept = owner if number < LARGEST_OWNERS else ALL
        before = sizes.get(kept, (0, 0))
        sizes[kept] = (before[0] + size, before[1] + inodes)
    return sizes
