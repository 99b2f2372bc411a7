# SPDX-License-Identifier: Apache-2.0
"""Trusted time: what o'clock it is for licenses, whatever is done to the host's clock.

Pure logic over readings of three things: the wall clock, which root can set; CLOCK_BOOTTIME,
which nobody can set and which counts suspend; and the boot id, which tells one boot from the
next. Within a boot the trusted time advances with CLOCK_BOOTTIME alone. It is kept as two
bounds that never go back:

* `now`, the latest time it may be. Licenses end by it.
* `earliest`, the time it certainly is. Licenses begin by it.

They are one time, save where the wall clock alone says that it is later (after a boot, when
nobody can tell how long the host was off): then only `now` follows, until the wall clock is
synchronised or a signed time proves it.

    wall clock turned back          changes nothing
    wall clock turned forward       changes nothing, unless it is synchronised (adjtimex(2)):
                                    then it corrects a clock that was behind
    suspend                         counts, as CLOCK_BOOTTIME counts it
    reboot                          goes on from the later of the wall clock and the highest
                                    time known before; a wall clock that is unbelievably far
                                    ahead (a typing error, a bad battery) must be synchronised
    signed time (iat of a license)  it is at least as late as that

What no host can find out by itself is how long it was off, if its clock was turned back
meanwhile: that much a license may last longer, and no more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import Flag, auto
from typing import Any, Final

_S: Final = 1_000_000_000
_NS_MAX: Final = 2**63 - 1

STEP_TOLERANCE_NS: Final = _S
"""Differences between wall and trusted time that are not called a step."""

PLAUSIBLE_OFF_NS: Final = 400 * 24 * 3600 * _S
"""Longest time a host is believed to have been off on the word of an unsynchronised clock."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The clocks at one moment."""

    wall_ns: int  # CLOCK_REALTIME, since 1970 UTC
    boottime_ns: int  # CLOCK_BOOTTIME, since boot, suspend included
    boot_id: str  # /proc/sys/kernel/random/boot_id
    synchronized: bool = False  # adjtimex(2) says so: an NTP client keeps the wall clock


@dataclass(frozen=True, slots=True)
class ClockState:
    """What must survive a restart: times that held at one reading of CLOCK_BOOTTIME."""

    boot_id: str
    boottime_ns: int
    now_ns: int  # the high-water mark at that moment
    earliest_ns: int  # at most now_ns

    def document(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_document(cls, body: dict[str, Any]) -> ClockState:
        """From a JSON object; raises ValueError where that is not a clock state."""
        try:
            boot_id = body["boot_id"]
            numbers = [body[key] for key in ("boottime_ns", "now_ns", "earliest_ns")]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a clock state: {error} is missing") from error
        if not isinstance(boot_id, str) or any(type(number) is not int for number in numbers):
            raise ValueError("not a clock state: boot_id must be a string, the times integers")
        boottime_ns, now_ns, earliest_ns = numbers
        if not (0 <= boottime_ns <= _NS_MAX and earliest_ns <= now_ns <= _NS_MAX):
            raise ValueError("not a clock state: times out of range")
        return cls(boot_id, boottime_ns, now_ns, earliest_ns)


class ClockChange(Flag):
    """What a reading brought to light."""

    NONE = 0
    NEW_BOOT = auto()  # deadlines in the kernel are gone or of another boot
    ADVANCED = auto()  # a bound moved ahead of CLOCK_BOOTTIME: deadlines must be set again
    WALL_BEHIND = auto()  # the wall clock is behind trusted time: turned back, or not yet set
    WALL_AHEAD = auto()  # it is ahead and not believed: turned forward and not synchronised


class TrustedClock:
    """The two bounds, moved by `observe` and `observe_signed`. Not for several threads at once."""

    def __init__(self, reading: Reading, state: ClockState | None = None) -> None:
        """Start at `reading`, from the state saved last; without one, the wall clock is believed.

        `last_change` then says what the first reading brought to light.
        """
        if state is None:
            wall_ns = _clamped(reading.wall_ns)
            state = ClockState(reading.boot_id, reading.boottime_ns, wall_ns, wall_ns)
        self._state = state
        self.last_change = self.observe(reading)

    @property
    def state(self) -> ClockState:
        """What to save, at the last reading."""
        return self._state

    @property
    def high_water_ns(self) -> int:
        """The latest trusted time at the last reading; never less afterwards."""
        return self._state.now_ns

    def now_ns(self, boottime_ns: int) -> int:
        """Trusted time at `boottime_ns` of this boot, at least the high-water mark."""
        return _clamped(self._state.now_ns + self._elapsed_ns(boottime_ns))

    def earliest_ns(self, boottime_ns: int) -> int:
        """The time it certainly is at `boottime_ns` of this boot; at most `now_ns`."""
        return _clamped(self._state.earliest_ns + self._elapsed_ns(boottime_ns))

    def wall_offset_ns(self, reading: Reading) -> int:
        """How far the wall clock is ahead of trusted time; negative where it is behind."""
        return reading.wall_ns - self.now_ns(reading.boottime_ns)

    def observe(self, reading: Reading) -> ClockChange:
        """Take a reading, often enough to save a fresh state (every minute, say)."""
        change = ClockChange.NONE
        state = self._state
        is_same_boot = reading.boot_id == state.boot_id and reading.boottime_ns >= state.boottime_ns
        # Boottime that runs backwards within a boot is a restored snapshot: a boot like others.
        elapsed_ns = reading.boottime_ns - state.boottime_ns if is_same_boot else 0
        now_ns = _clamped(state.now_ns + elapsed_ns)
        earliest_ns = _clamped(state.earliest_ns + elapsed_ns)
        if not is_same_boot:
            change |= ClockChange.NEW_BOOT
        ahead_ns = reading.wall_ns - now_ns
        is_believed = reading.synchronized or (not is_same_boot and ahead_ns <= PLAUSIBLE_OFF_NS)
        if ahead_ns > 0 and is_believed:
            # Below the tolerance it is jitter; taking it would creep ahead reading by reading.
            if ahead_ns > STEP_TOLERANCE_NS or not is_same_boot:
                now_ns = _clamped(reading.wall_ns)
                change |= ClockChange.ADVANCED
        elif ahead_ns > STEP_TOLERANCE_NS:
            change |= ClockChange.WALL_AHEAD
        elif ahead_ns < -STEP_TOLERANCE_NS:
            change |= ClockChange.WALL_BEHIND
        if reading.synchronized:
            proven_ns = min(_clamped(reading.wall_ns), now_ns)
            if proven_ns > earliest_ns + STEP_TOLERANCE_NS:
                earliest_ns = proven_ns
                change |= ClockChange.ADVANCED
        self._state = ClockState(reading.boot_id, reading.boottime_ns, now_ns, earliest_ns)
        return change

    def observe_signed(self, unix_s: int, boottime_ns: int) -> ClockChange:
        """Take a time that a trusted issuer signed and that is past: the iat of a license.

        `boottime_ns` is now. Compared with the last reading instead, a license issued since
        would move the clock ahead by all the time that has passed since.
        """
        signed_ns = _clamped(unix_s * _S)
        now_ns, earliest_ns = self.now_ns(boottime_ns), self.earliest_ns(boottime_ns)
        if signed_ns <= earliest_ns:
            return ClockChange.NONE
        self._state = replace(
            self._state,
            boottime_ns=max(boottime_ns, self._state.boottime_ns),
            now_ns=max(now_ns, signed_ns),
            earliest_ns=signed_ns,
        )
        return ClockChange.ADVANCED

    def deadline_boottime_ns(self, unix_s: int) -> int:
        """CLOCK_BOOTTIME at which `unix_s` is reached and a license ends; 0 where it is past."""
        return self._boottime_of(unix_s, self._state.now_ns)

    def start_boottime_ns(self, unix_s: int) -> int:
        """CLOCK_BOOTTIME at which `unix_s` is certainly reached and a license begins, or 0."""
        return self._boottime_of(unix_s, self._state.earliest_ns)

    def _boottime_of(self, unix_s: int, trusted_ns: int) -> int:
        left_ns = unix_s * _S - trusted_ns
        return _clamped(self._state.boottime_ns + left_ns) if left_ns > 0 else 0

    def _elapsed_ns(self, boottime_ns: int) -> int:
        return max(0, boottime_ns - self._state.boottime_ns)


def _clamped(time_ns: int) -> int:
    return min(max(time_ns, 0), _NS_MAX)
