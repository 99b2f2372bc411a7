# SPDX-License-Identifier: Apache-2.0
"""Whether the conditions of an entitlement hold on this host now, and until when.

Pure: the host's labels and posture, and the time, are arguments. A fact that is not known lets
no condition hold, and neither does a kind that this version cannot judge.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from lictoken.claims import Condition, Entitlement
from lictoken.conditions import (
    HOURS,
    KERNEL,
    LABEL,
    POSTURE_FLAGS,
    Hours,
    UnknownZone,
    kernel_satisfies,
    parse_hours,
)

_POSTURE: Final = "posture:"
_HORIZON_DAYS: Final = 9
"""A weekly window has begun or ended within eight days, whatever a change of clocks does."""

_SAMPLE_S: Final = 6 * 3600
"""Changes of a zone's clock are further apart than that."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One condition at one moment."""

    kind: str
    values: tuple[str, ...]
    holds: bool
    found: str | None  # the fact; None: not known here
    detail: str = ""  # why it does not hold
    hint: str = ""  # what would change it
    changes_at_s: int | None = None  # when time alone makes it hold, or not any more; unix s


def supported(condition: Condition) -> bool:
    """Whether this version can judge conditions of that kind."""
    kind = condition.kind
    return kind in (HOURS, KERNEL, *POSTURE_FLAGS) or kind.startswith(LABEL)


def judge_condition(
    condition: Condition, labels: Mapping[str, str], facts: Mapping[str, str], now_s: float
) -> Standing:
    """Any of the values satisfies a condition."""
    kind, values = condition.kind, condition.values
    if kind.startswith(LABEL):
        return _label(condition, labels.get(kind.removeprefix(LABEL)))
    if kind == HOURS:
        return _hours(condition, now_s)
    if kind == KERNEL or kind in POSTURE_FLAGS:
        return _posture(condition, facts.get(kind.removeprefix(_POSTURE)))
    return Standing(
        kind,
        values,
        holds=False,
        found=None,
        detail=f"its condition on {kind} cannot be judged by this version",
        hint="upgrade licagent, or have the license issued without it",
    )


def judge_conditions(
    entitlement: Entitlement, labels: Mapping[str, str], facts: Mapping[str, str], now_s: float
) -> tuple[Standing, ...]:
    """Every condition of an entitlement; all must hold."""
    return tuple(judge_condition(each, labels, facts, now_s) for each in entitlement.conditions)


def _label(condition: Condition, own: str | None) -> Standing:
    kind, values = condition.kind, condition.values
    if own in values:
        return Standing(kind, values, holds=True, found=own)
    name = kind.removeprefix(LABEL)
    is_now = "has none" if own is None else f"has {own}"
    return Standing(
        kind,
        values,
        holds=False,
        found=own,
        detail=f"the label {name} must be {_either(values)}, and this host {is_now}",
        hint=f"set the label {name} of this host (licplane host label, or labels in agent.toml)",
    )


def _posture(condition: Condition, own: str | None) -> Standing:
    kind, values = condition.kind, condition.values
    holds = own is not None and any(_satisfies(kind, value, own) for value in values)
    if holds:
        return Standing(kind, values, holds=True, found=own)
    fact = kind.removeprefix(_POSTURE)
    return Standing(
        kind,
        values,
        holds=False,
        found=own,
        detail=f"{fact} must be {_either(values)}, and "
        + ("this host cannot tell" if own is None else f"is {own}"),
        hint=_HINTS[fact],
    )


_HINTS: Final = {
    "kernel": "boot a kernel that the license allows",
    "secure_boot": "turn secure boot on or off in the firmware, or see why EFI does not tell",
    "disk_encryption": "the root file system must lie on dm-crypt, or must not, as demanded",
    "agent_integrity": "install licagent again; see `licagent doctor` for what was altered",
    "clock_in_sync": "see why the clock is not synchronised: timedatectl timesync-status",
    "pending_reboot": "reboot this host",
}


def _satisfies(kind: str, value: str, own: str) -> bool:
    if kind != KERNEL:
        return own == value and value in ("true", "false")
    try:
        return kernel_satisfies(value, own) is True
    except ValueError:
        return False


def _hours(condition: Condition, now_s: float) -> Standing:
    kind, values = condition.kind, condition.values
    windows = []
    problems = []
    for value in values:
        try:
            windows.append(_window(value))
        except UnknownZone as error:
            problems.append((str(error), "install the package tzdata"))
        except ValueError as error:
            problems.append((str(error), "have the license issued again"))
    try:
        local = ", ".join(
            dict.fromkeys(
                f"{datetime.fromtimestamp(now_s, one.zone):%a %H:%M} {one.zone}" for one in windows
            )
        )
        holds = _open_at(windows, now_s)
        changes_at_s = _change_cached(values, int(now_s) // 60)
        if changes_at_s is not None and changes_at_s <= now_s:
            changes_at_s = next_change_s(windows, now_s)
    except (OverflowError, OSError, ValueError):  # outside the years 1 to 9999
        windows, local, holds, changes_at_s = [], "", False, None
        problems.append((f"{now_s} s is no time of a calendar", "check the clock"))
    found = local or None
    if holds:
        return Standing(kind, values, holds=True, found=found, changes_at_s=changes_at_s)
    detail = f"the hours are {_either(values)}, and it is {local}"
    hint = "wait for the hours to begin"
    if changes_at_s is not None:
        hint = f"they begin at {datetime.fromtimestamp(changes_at_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
    elif problems:
        detail, hint = problems[0]
    return Standing(kind, values, False, found, detail, hint, changes_at_s)


@functools.lru_cache(maxsize=1024)
def _change_cached(values: tuple[str, ...], minute: int) -> int | None:
    """`next_change_s` from the minute's beginning on: asked every second, worked out once."""
    windows = []
    for value in values:
        with contextlib.suppress(ValueError):
            windows.append(_window(value))
    return next_change_s(windows, minute * 60)


@functools.lru_cache(maxsize=1024)
def _window(text: str) -> Hours:
    return parse_hours(text)


def _open_at(windows: Iterable[Hours], now_s: float) -> bool:
    """Whether one of the windows is open."""
    for window in windows:
        local = datetime.fromtimestamp(now_s, window.zone)
        minute = local.hour * 60 + local.minute + (local.second + local.microsecond / 1e6) / 60
        if window.holds_at(local.weekday(), minute):
            return True
    return False


def next_change_s(windows: Sequence[Hours], now_s: float) -> int | None:
    """When windows that are open have all closed, or closed ones open; None: they never do.

    Between two candidates local time runs on evenly and passes no window's beginning or end.
    """
    is_open = _open_at(windows, now_s)
    candidates = {at for window in windows for at in _candidates(window, now_s) if at > now_s}
    for at in sorted(candidates):
        if _open_at(windows, at) != is_open:
            return at
    return None


def _candidates(window: Hours, now_s: float) -> Iterator[int]:
    """Every moment within the horizon at which the window may open or close."""
    zone = window.zone
    today = datetime.fromtimestamp(now_s, zone).replace(
        hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0
    )
    for day in range(-1, _HORIZON_DAYS + 1):
        for minute in (window.from_minute, window.to_minute):
            wall = today + timedelta(days=day, minutes=minute)
            for fold in (0, 1):  # a wall clock that is put back shows it twice
                yield int(wall.replace(tzinfo=zone, fold=fold).timestamp())
    yield from _transitions(zone, int(now_s))


@functools.lru_cache(maxsize=256)
def _transitions_of(zone: tzinfo, first_day: int) -> tuple[int, ...]:
    found = []
    begin = first_day * 86_400
    for sample in range(begin, begin + (_HORIZON_DAYS + 1) * 86_400, _SAMPLE_S):
        low, high = sample, sample + _SAMPLE_S
        before = _offset(zone, low)
        if _offset(zone, high) == before:
            continue
        while high - low > 1:  # the clock is changed within (low, high]
            middle = (low + high) // 2
            if _offset(zone, middle) == before:
                low = middle
            else:
                high = middle
        found.append(high)
    return tuple(found)


def _transitions(zone: tzinfo, now_s: int) -> tuple[int, ...]:
    """Moments within the horizon at which the clocks of a zone are changed."""
    return () if zone is UTC else _transitions_of(zone, now_s // 86_400)


def _offset(zone: tzinfo, at_s: int) -> timedelta | None:
    return datetime.fromtimestamp(at_s, zone).utcoffset()


def _either(values: Sequence[str]) -> str:
    return " or ".join(values)
