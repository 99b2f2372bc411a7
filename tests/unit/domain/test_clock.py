# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.clock import ClockChange, ClockState, Reading, TrustedClock

S = 1_000_000_000
NOW_S = 1_800_000_000
DAY_S = 24 * 3600


class Machine:
    """A host whose true time passes, and whose wall clock anybody may set."""

    def __init__(self) -> None:
        self.true_ns = NOW_S * S
        self.wall_error_ns = 0
        self.booted_ns = self.true_ns
        self.boots = 0
        self.synchronized = False

    def read(self) -> Reading:
        return Reading(
            max(0, self.true_ns + self.wall_error_ns),
            self.true_ns - self.booted_ns,
            f"boot-{self.boots}",
            self.synchronized,
        )

    def pass_time(self, seconds: int) -> None:
        """Running or suspended: CLOCK_BOOTTIME counts both."""
        self.true_ns += seconds * S

    def set_wall(self, error_s: int) -> None:
        self.wall_error_ns = error_s * S
        self.synchronized = False

    def synchronize(self) -> None:
        self.wall_error_ns = 0
        self.synchronized = True

    def reboot(self, off_s: int) -> None:
        self.true_ns += off_s * S
        self.booted_ns = self.true_ns
        self.boots += 1
        self.synchronized = False


def restarted(machine: Machine, clock: TrustedClock) -> TrustedClock:
    """The daemon starts again, from what it saved last."""
    return TrustedClock(machine.read(), ClockState.from_document(clock.state.document()))


def now_s(machine: Machine, clock: TrustedClock) -> int:
    return clock.now_ns(machine.read().boottime_ns) // S


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 3 * DAY_S)),
        st.tuples(st.just("wall"), st.integers(-NOW_S, 20 * 365 * DAY_S)),
        st.tuples(st.just("reboot"), st.integers(0, 60 * DAY_S)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("sync"), st.just(0)),
        st.tuples(st.just("signed"), st.integers(0, NOW_S + 30 * DAY_S)),
        st.tuples(st.just("snapshot"), st.integers(1, DAY_S)),
    ),
    max_size=30,
)


@given(STEPS, st.integers(-DAY_S, 10 * DAY_S))
def test_nothing_brings_an_ended_license_back(steps: list[tuple[str, int]], ends_in_s: int) -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    expires_s = NOW_S + ends_in_s
    ended = False
    last_ns = clock.now_ns(machine.read().boottime_ns)
    for step, amount in steps:
        match step:
            case "pass":
                machine.pass_time(amount)
            case "wall":
                machine.set_wall(amount)
            case "reboot":
                machine.reboot(amount)
                clock = restarted(machine, clock)
            case "restart":
                clock = restarted(machine, clock)
            case "sync":
                machine.synchronize()
            case "signed":
                clock.observe_signed(amount, machine.read().boottime_ns)
            case "snapshot":  # CLOCK_BOOTTIME itself goes back, within one boot id
                machine.booted_ns = min(machine.true_ns, machine.booted_ns + amount * S)
        before = clock.high_water_ns
        clock.observe(machine.read())
        reading = machine.read()
        now_ns = clock.now_ns(reading.boottime_ns)
        assert now_ns >= last_ns
        assert now_ns >= clock.high_water_ns >= before
        assert clock.earliest_ns(reading.boottime_ns) <= now_ns
        still_valid = now_ns < expires_s * S
        assert not (ended and still_valid)
        # The kernel's deadline says the same as the clock.
        assert (reading.boottime_ns < clock.deadline_boottime_ns(expires_s)) == still_valid
        ended = ended or not still_valid
        last_ns = now_ns


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("pass"), st.integers(0, DAY_S)),
            st.tuples(st.just("wall"), st.integers(-NOW_S, 20 * 365 * DAY_S)),
            st.tuples(st.just("reboot"), st.integers(0, DAY_S)),
            st.tuples(st.just("restart"), st.just(0)),
        ),
        max_size=30,
    )
)
def test_no_step_begins_a_license_early_or_stretches_its_running_time(
    steps: list[tuple[str, int]],
) -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    off_s = 0
    for step, amount in steps:
        match step:
            case "pass":
                machine.pass_time(amount)
            case "wall":
                machine.set_wall(amount)
            case "reboot":
                machine.reboot(amount)
                off_s += amount
                clock = restarted(machine, clock)
            case _:
                clock = restarted(machine, clock)
        clock.observe(machine.read())
        boottime_ns = machine.read().boottime_ns
        assert clock.earliest_ns(boottime_ns) <= machine.true_ns
        # All that a clock turned back can hide is the time the host was off.
        assert clock.now_ns(boottime_ns) >= machine.true_ns - off_s * S
        early_s = machine.true_ns // S + 1
        assert clock.start_boottime_ns(early_s) > boottime_ns


def test_turning_the_clock_changes_nothing_within_a_boot() -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    for error_s, change in ((-DAY_S, ClockChange.WALL_BEHIND), (DAY_S, ClockChange.WALL_AHEAD)):
        machine.set_wall(error_s)
        machine.pass_time(10)
        assert clock.observe(machine.read()) == change
        assert clock.wall_offset_ns(machine.read()) == error_s * S
    assert now_s(machine, clock) == NOW_S + 20
    assert clock.deadline_boottime_ns(NOW_S + 100) == 100 * S


def test_suspend_counts() -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    machine.pass_time(8 * 3600)
    assert now_s(machine, clock) == NOW_S + 8 * 3600


def test_a_clock_that_was_behind_is_corrected_when_synchronised() -> None:
    machine = Machine()
    machine.set_wall(-NOW_S)  # no battery: 1970
    clock = TrustedClock(machine.read())
    assert now_s(machine, clock) == 0
    machine.synchronize()
    assert clock.observe(machine.read()) & ClockChange.ADVANCED
    assert now_s(machine, clock) == NOW_S
    assert clock.earliest_ns(machine.read().boottime_ns) == NOW_S * S


def test_a_reboot_goes_on_from_the_wall_clock_but_begins_nothing_by_it() -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    machine.reboot(DAY_S)
    clock = restarted(machine, clock)
    assert clock.last_change & ClockChange.NEW_BOOT
    assert now_s(machine, clock) == NOW_S + DAY_S
    assert clock.earliest_ns(0) == NOW_S * S
    machine.synchronize()
    clock.observe(machine.read())
    assert clock.earliest_ns(0) == (NOW_S + DAY_S) * S


def test_a_clock_turned_back_over_a_reboot_goes_on_from_the_high_water_mark() -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    machine.pass_time(DAY_S)
    clock.observe(machine.read())
    machine.set_wall(-30 * DAY_S)
    machine.reboot(60)
    clock = restarted(machine, clock)
    assert clock.last_change & ClockChange.WALL_BEHIND
    assert now_s(machine, clock) == NOW_S + DAY_S


def test_an_unbelievable_clock_after_a_reboot_does_not_end_every_license_for_ever() -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    machine.set_wall(70 * 365 * DAY_S)
    machine.reboot(60)
    clock = restarted(machine, clock)
    assert clock.last_change & ClockChange.WALL_AHEAD
    assert now_s(machine, clock) == NOW_S


def test_a_signed_time_is_believed() -> None:
    machine = Machine()
    machine.set_wall(-DAY_S)
    clock = TrustedClock(machine.read())
    assert clock.observe_signed(NOW_S, 0) == ClockChange.ADVANCED
    assert now_s(machine, clock) == NOW_S
    assert clock.start_boottime_ns(NOW_S) == 0
    assert clock.observe_signed(NOW_S - 5, 0) == ClockChange.NONE


def test_a_signed_time_that_is_no_news_moves_no_deadline() -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    deadline_ns = clock.deadline_boottime_ns(NOW_S + 100)
    for _ in range(3):
        machine.pass_time(30)  # and no reading meanwhile
        boottime_ns = machine.read().boottime_ns
        assert clock.observe_signed(now_s(machine, clock) - 1, boottime_ns) is ClockChange.NONE
        assert clock.deadline_boottime_ns(NOW_S + 100) == deadline_ns
    assert now_s(machine, clock) == NOW_S + 90


def test_jitter_moves_no_deadline() -> None:
    machine = Machine()
    clock = TrustedClock(machine.read())
    for second in range(100):
        machine.pass_time(1)
        reading = machine.read()
        wall_ns = reading.wall_ns + second * S // 200
        jittery = Reading(wall_ns, reading.boottime_ns, reading.boot_id, True)
        assert clock.observe(jittery) is ClockChange.NONE
    assert clock.high_water_ns == (NOW_S + 100) * S


def test_deadlines_stay_in_range() -> None:
    clock = TrustedClock(Machine().read())
    assert clock.deadline_boottime_ns(2**63 // S) <= 2**63 - 1
    assert clock.deadline_boottime_ns(2**70) == 2**63 - 1
    assert clock.deadline_boottime_ns(0) == 0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"boot_id": 1, "boottime_ns": 0, "now_ns": 0, "earliest_ns": 0},
        {"boot_id": "a", "boottime_ns": 0.5, "now_ns": 0, "earliest_ns": 0},
        {"boot_id": "a", "boottime_ns": True, "now_ns": 0, "earliest_ns": 0},
        {"boot_id": "a", "boottime_ns": 0, "now_ns": 0, "earliest_ns": 1},
        {"boot_id": "a", "boottime_ns": -1, "now_ns": 0, "earliest_ns": 0},
        {"boot_id": "a", "boottime_ns": 0, "now_ns": 2**63, "earliest_ns": 0},
    ],
)
def test_refuses_what_is_no_state(body: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a clock state"):
        ClockState.from_document(body)
