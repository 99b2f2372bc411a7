# SPDX-License-Identifier: Apache-2.0
"""Byte-time: the sum of what is committed is the integral of what was measured."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from licagent.metering.holdings import (
    LONGEST_UNKNOWN_MS,
    Accounts,
    Instant,
    Measured,
)

NAMES = frozenset({"f"})
EXPECTED_MS = 300_000


def at(boottime_ms: int, unix_ms: int | None = None, boot: str = "boot") -> Instant:
    return Instant(boot, boottime_ms, boottime_ms + 10**12 if unix_ms is None else unix_ms)


def size(size_bytes: int, note: str = "") -> Measured:
    return Measured({-1: (size_bytes, 1)}, note)


def test_a_size_holds_until_the_next_measurement() -> None:
    accounts = Accounts(b"", names=NAMES)
    accounts.measured("f", at(1_000), size(100), EXPECTED_MS)
    assert accounts.stretches() == []
    accounts.measured("f", at(4_000), size(7), EXPECTED_MS)
    (stretch,) = accounts.stretches()
    assert (stretch.byte_ms, stretch.size_bytes) == (300_000, 7)
    assert stretch.end_unix_ms - stretch.start_unix_ms == 3_000
    assert stretch.why_estimated == ""


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 100_000),  # time until then
            st.integers(0, 2**50),  # bytes
            st.integers(-(10**9), 10**9),  # step of the wall clock
            st.sampled_from(("keep", "commit", "sample, then later commit", "restart")),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_commits_and_restarts_neither_lose_nor_double(
    steps: list[tuple[int, int, int, str]],
) -> None:
    accounts = Accounts(b"", names=NAMES)
    boottime, wall = 1_000, 10**12
    baseline = accounts.baseline()
    reference = committed = 0
    since = 0  # what was measured since the last commit, and is measured again after a restart
    held: int | None = None
    held_at_commit: tuple[int, int] | None = None
    waiting = None
    for duration, size_bytes, step, then in steps:
        boottime, wall = boottime + duration, wall + duration + step
        if held is not None:
            reference += held * duration
            since += held * duration
        held = size_bytes
        accounts.measured("f", at(boottime, wall), size(size_bytes), EXPECTED_MS)
        if then == "commit":
            committed += sum(stretch.byte_ms for stretch in accounts.stretches())
            baseline = accounts.baseline()
            accounts.committed(accounts.totals())
            since, held_at_commit, waiting = 0, (held, boottime), None
        elif then == "sample, then later commit":
            stretches = sum(stretch.byte_ms for stretch in accounts.stretches())
            waiting = (stretches, accounts.baseline(), accounts.totals(), held, boottime)
        elif then == "restart":
            accounts = Accounts(baseline, names=NAMES)
            waiting = None
            reference -= since
            since = 0
            # From the baseline on, its size holds until the next measurement, which is now.
            if held_at_commit is None:
                held = None
            else:
                accounts.measured("f", at(boottime, wall), size(size_bytes), EXPECTED_MS)
                since = held_at_commit[0] * (boottime - held_at_commit[1])
                reference += since
        elif waiting is not None:
            stretches, baseline, totals, size_then, when = waiting
            committed += stretches
            accounts.committed(totals)
            since -= stretches
            held_at_commit, waiting = (size_then, when), None
    committed += sum(stretch.byte_ms for stretch in accounts.stretches())
    assert committed == reference


def test_the_wall_clock_moves_no_bytes_within_a_boot() -> None:
    accounts = Accounts(b"", names=NAMES)
    accounts.measured("f", at(0, 10**12), size(1), EXPECTED_MS)
    accounts.measured("f", at(1_000, 5), size(1), EXPECTED_MS)
    accounts.measured("f", at(2_000, 10**14), size(1), EXPECTED_MS)
    (stretch,) = accounts.stretches()
    assert stretch.byte_ms == 2_000
    assert stretch.end_unix_ms - stretch.start_unix_ms == 2_000


def after_reboot(gone_ms: int) -> tuple[int, str, int]:
    before = Accounts(b"", names=NAMES)
    before.measured("f", at(1_000, 10**12), size(10), EXPECTED_MS)
    accounts = Accounts(before.baseline(), names=NAMES)
    accounts.measured("f", at(50, 10**12 + gone_ms, "next"), size(10), EXPECTED_MS)
    (stretch,) = accounts.stretches() or [None]
    if stretch is None:
        return 0, "", 0
    return stretch.byte_ms, stretch.why_estimated, stretch.uncounted_ms


def test_time_between_boots_is_the_wall_clocks_and_estimated() -> None:
    assert after_reboot(60_000) == (600_000, "60 s between two boots by the wall clock", 0)


def test_a_clock_that_went_back_between_boots_counts_nothing() -> None:
    assert after_reboot(-60_000)[0] == 0


def test_a_clock_that_is_far_ahead_is_not_believed() -> None:
    byte_ms, why, uncounted = after_reboot(LONGEST_UNKNOWN_MS + 1)
    assert (byte_ms, uncounted) == (0, LONGEST_UNKNOWN_MS + 1)
    assert "not counted" in why


def test_a_long_time_without_measurement_is_estimated() -> None:
    accounts = Accounts(b"", names=NAMES)
    accounts.measured("f", at(0), size(1), EXPECTED_MS)
    accounts.measured("f", at(EXPECTED_MS * 10), size(1), EXPECTED_MS)
    assert accounts.stretches()[0].why_estimated == "not measured for 3000 s"


def test_what_is_not_exact_stays_so_until_measured_anew() -> None:
    accounts = Accounts(b"", names=NAMES)
    accounts.measured("f", at(0), size(1, "why"), EXPECTED_MS)
    accounts = Accounts(accounts.baseline(), names=NAMES)
    accounts.measured("f", at(10), size(1), EXPECTED_MS)
    assert accounts.stretches()[0].why_estimated == "why"
    accounts.committed(accounts.totals())
    accounts.measured("f", at(20), size(1), EXPECTED_MS)
    assert accounts.stretches()[0].why_estimated == ""


def test_an_owner_that_is_gone_is_billed_to_the_end_and_then_forgotten() -> None:
    accounts = Accounts(b"", names=NAMES)
    accounts.measured("f", at(0), Measured({5: (10, 1), 6: (20, 1)}), EXPECTED_MS)
    accounts.measured("f", at(100), Measured({6: (20, 1)}), EXPECTED_MS)
    assert {one.owner: one.byte_ms for one in accounts.stretches()} == {5: 1_000, 6: 2_000}
    accounts.committed(accounts.totals())
    assert [owner for owner, *_ in accounts.held("f")] == [6]


def test_damaged_and_foreign_baselines_start_anew() -> None:
    good = Accounts(b"", names=NAMES)
    good.measured("f", at(0), size(1), EXPECTED_MS)
    for bad in (b"x", b"\x78\x9c", good.baseline()[:-5]):
        assert Accounts(bad, names=NAMES).held("f") == []
    assert Accounts(good.baseline(), names=frozenset({"other"})).held("f") == []
