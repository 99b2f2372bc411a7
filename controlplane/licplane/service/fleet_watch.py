# SPDX-License-Identifier: Apache-2.0
"""The fleet as monitoring sees it: numbers only, for nobody in particular."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from licplane.errors import PlaneError
from licplane.service.billing.budgets import state_of
from licplane.service.billing.reading import parsed, read_budget
from licplane.service.core import Core
from licplane.service.drift import SILENT_AFTER_MS
from licplane.service.replica import Replica
from licplane.store.fleet_counts import FleetCounts
from lictoken.validity import standing

BUDGETS_MAX: Final = 50
"""So many budgets are worked out; all that a page can show, and each reads a month of usage."""
_BUDGETS_EVERY_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class LicenseEnd:
    """A license of the catalog, and when it ends."""

    jti: str
    ends_at_s: int
    standing: str
    """active, suspended or revoked, whether or not it has ended."""


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """How far a budget is used, as ratios: 1 is all of it."""

    name: str
    used: float
    expected: float
    """At the period's end, by the forecast."""


@dataclass(frozen=True, slots=True)
class FleetState:
    """All of it at one moment."""

    now_ms: int
    counts: FleetCounts
    licenses: tuple[LicenseEnd, ...]
    """Sorted by their ends."""
    budgets: tuple[BudgetUse, ...]
    authority_ends_unix_ms: int
    """Of the certification authority that issues; 0: none is open."""


class FleetWatch:
    """Reads it. Safe for several threads."""

    def __init__(self, core: Core, replica: Replica) -> None:
        self._core = core
        self._replica = replica
        self._licenses: tuple[int, tuple[LicenseEnd, ...]] = (-1, ())
        self._budgets: tuple[int, tuple[BudgetUse, ...]] = (0, ())

    def answers(self) -> int:
        """The revision of the catalog in the database: it can be read. Raises PlaneError."""
        with self._core.store.reading() as reader:
            return reader.head().revision

    def read(self) -> FleetState:
        """The fleet now. Raises PlaneError where the database cannot be read."""
        now_ms = self._core.now_ms()
        with self._core.store.reading() as reader:
            counts = reader.fleet_counts(now_ms, silent_before_unix_ms=now_ms - SILENT_AFTER_MS)
        return FleetState(now_ms, counts, self._ends(), self._used(now_ms), self._authority())

    def _ends(self) -> tuple[LicenseEnd, ...]:
        """Worked out once a revision, and for the most part without the lock: a revocation that
        is on its way must not wait for a scrape."""
        lock, standings = self._replica.with_standings()
        with lock:
            revision = self._replica.revision
            if self._licenses[0] == revision:
                return self._licenses[1]
            rows = standings.all()
        found = [
            LicenseEnd(one.jti, one.expires_at_s, standing(one, statements).value)
            for one, statements in rows
        ]
        found.sort(key=lambda one: (one.ends_at_s, one.jti))
        self._licenses = (revision, tuple(found))
        return self._licenses[1]

    def _used(self, now_ms: int) -> tuple[BudgetUse, ...]:
        read_ms, known = self._budgets
        if now_ms - read_ms < _BUDGETS_EVERY_MS:
            return known
        found: list[BudgetUse] = []
        with self._core.store.reading() as reader:
            for one in reader.billing_documents("budget")[:BUDGETS_MAX]:
                try:
                    state = state_of(reader, read_budget(parsed(one.document)), now_ms)
                except PlaneError:
                    continue  # its plan went: whoever asks for the budget is told
                used, expected = float(state.percent) / 100, float(state.expected_percent) / 100
                found.append(BudgetUse(one.name, used, expected))
        self._budgets = (now_ms, tuple(found))
        return self._budgets[1]

    def _authority(self) -> int:
        try:
            certificate = self._core.authority().certificate
        except PlaneError:
            return 0
        return int(certificate.not_valid_after_utc.timestamp() * 1000)


def by_standing(licenses: tuple[LicenseEnd, ...], now_ms: int) -> Mapping[str, int]:
    """How many there are: of those that ended only `expired`, else by standing."""
    found = dict.fromkeys(("active", "suspended", "revoked", "expired"), 0)
    for one in licenses:
        found["expired" if one.ends_at_s * 1000 <= now_ms else one.standing] += 1
    return found
