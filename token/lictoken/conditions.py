# SPDX-License-Identifier: Apache-2.0
"""What conditions may say: their kinds, and how their values are written. Standard library only.

Issuer and agent share this: what is issued is what can be judged. Whether a condition holds is
the agent's business (docs/reference/conditions.md).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

LABEL: Final = "label:"
"""Kinds with this prefix are about a label of the host: label:region, label:team."""

HOURS: Final = "hours"
KERNEL: Final = "posture:kernel"

POSTURE_FLAGS: Final = (
    "posture:secure_boot",
    "posture:disk_encryption",
    "posture:agent_integrity",
    "posture:clock_in_sync",
    "posture:pending_reboot",
)
"""Kinds whose values are "true" and "false"."""

KINDS: Final = (HOURS, KERNEL, *POSTURE_FLAGS)
"""Every kind beside those of labels."""

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MINUTES: Final = 24 * 60

_KIND: Final = re.compile(r"[a-z][a-z0-9_]{0,63}(:[a-z][a-z0-9_./-]{0,63})?", re.ASCII)
_LABEL_NAME: Final = re.compile(r"[a-z][a-z0-9_./-]{0,62}", re.ASCII)
_HOURS: Final = re.compile(
    r"(?P<days>[A-Za-z,-]+) (?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d) (?P<zone>[A-Za-z0-9_+/-]{1,64})",
    re.ASCII,
)
_HOURS_FORM: Final = "Mon-Fri 08:00-18:00 Europe/Berlin"
_VERSION: Final = re.compile(r"(>=|<=|==|>|<)\s*(\d{1,9}(?:\.\d{1,9}){0,3})", re.ASCII)

_COMPARE: Final[dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]]] = {
    ">=": lambda one, other: one >= other,
    "<=": lambda one, other: one[: len(other)] <= other,
    "==": lambda one, other: one[: len(other)] == other,
    ">": lambda one, other: one[: len(other)] > other,
    "<": lambda one, other: one < other,
}


class UnknownZone(ValueError):
    """A time zone that this machine does not know."""


@dataclass(frozen=True, slots=True)
class Hours:
    """A weekly window in the local time of a zone."""

    days: frozenset[int]  # 0 is Monday; the days on which it begins
    from_minute: int  # 0..1439, of the day
    to_minute: int  # 1..1440; at most from_minute: of the day after
    zone: tzinfo

    def holds_at(self, weekday: int, minute: float) -> bool:
        """Whether the window is open at a local time; `minute` counts from midnight."""
        if self.to_minute > self.from_minute:
            return weekday in self.days and self.from_minute <= minute < self.to_minute
        return (weekday in self.days and minute >= self.from_minute) or (
            (weekday - 1) % 7 in self.days and minute < self.to_minute
        )


def parse_hours(text: str) -> Hours:
    """`Mon-Fri 08:00-18:00 Europe/Berlin`, `Sat,Sun 00:00-24:00 UTC`, `Mon-Sun 22:00-06:00 UTC`.

    A window that ends at or before its beginning ends on the next day. Raises ValueError, and
    UnknownZone where this machine does not know the zone.
    """
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no weekly window; write it as {_HOURS_FORM!r}")
    begin, end = _minute(match["from"]), _minute(match["to"])
    if begin == DAY_MINUTES:
        raise ValueError(f"{text!r} begins at 24:00; write 00:00 of the next day")
    if end in (begin, 0):
        raise ValueError(f"{text!r} ends when it begins, or at 00:00; a whole day is 00:00-24:00")
    return Hours(_days(match["days"], text), begin, end, zone_of(match["zone"]))


def zone_of(name: str) -> tzinfo:
    """A time zone by its IANA name. Raises UnknownZone."""
    if name == "UTC":
        return UTC  # also without any zone data
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UnknownZone(
            f"the time zone {name!r} is not known here{_near(name, _zones())}"
        ) from error


def parse_kernel(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """`>=6.1`, `>=6.1,<7`: comparisons that must all hold. Raises ValueError.

    `==6.1`, `<=6.1` and `>6.1` compare as many places as are written: 6.1.55 is 6.1.
    """
    found = []
    for part in text.split(","):
        match = _VERSION.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{text!r} compares no kernel versions; write {'>=6.1'!r}")
        found.append((match[1], tuple(map(int, match[2].split(".")))))
    return tuple(found)


def kernel_satisfies(text: str, release: str) -> bool | None:
    """Whether a kernel release, such as 6.1.0-18-amd64, is one of `text`; None: no release.

    Raises ValueError where `text` compares no versions.
    """
    wanted = parse_kernel(text)
    match = re.match(r"\d{1,9}(\.\d{1,9}){1,3}", release, re.ASCII)
    if match is None:
        return None
    own = tuple(map(int, match[0].split(".")))
    return all(
        _COMPARE[how]((*own, *(0 for _ in range(len(other) - len(own)))), other)
        for how, other in wanted
    )


def problem_of(kind: str, values: Sequence[str]) -> str:
    """What is wrong with a condition, with what is meant perhaps; "" where it can be judged."""
    if kind.startswith(LABEL):
        name = kind.removeprefix(LABEL)
        if not _LABEL_NAME.fullmatch(name):
            return f"{kind!r} names no label: lower-case letters, digits and . _ / -"
        return next((f"{kind} cannot be {value!r}" for value in values if len(value) > 255), "")
    if kind not in KINDS:
        return f"the condition {kind!r} is unknown{_near_kind(kind)}"
    if kind in POSTURE_FLAGS:
        for value in values:
            if value not in ("true", "false"):
                return f"{kind} is {value!r}; write true or false"
        return ""
    parse = parse_hours if kind == HOURS else parse_kernel
    try:
        for value in values:
            parse(value)
    except ValueError as error:
        return f"{kind}: {error}"
    return ""


def is_kind(text: str) -> bool:
    """Whether `text` has the form of a kind, known or not."""
    return _KIND.fullmatch(text) is not None


def split_values(kind: str, text: str) -> tuple[str, ...]:
    """Values as a command line has them: separated by commas, or by `;` where they hold commas."""
    separator = ";" if kind in (HOURS, KERNEL) else ","
    return tuple(part.strip() for part in text.split(separator))


def _minute(text: str) -> int:
    hour, minute = int(text[:2]), int(text[3:])
    if minute > 59 or hour * 60 + minute > DAY_MINUTES:
        raise ValueError(f"{text} is no time of the day; 00:00 to 24:00")
    return hour * 60 + minute


def _days(text: str, whole: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        for name in (first, last or first):
            if name not in DAYS:
                raise ValueError(
                    f"{whole!r}: {name!r} is no day{_near(name.capitalize(), DAYS)}; "
                    f"days are {', '.join(DAYS)}"
                )
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(found)


def _near_kind(kind: str) -> str:
    if kind in ("region", "environment", "org", "project"):
        return f" (did you mean {LABEL}{kind}?)"
    near = _near(kind, KINDS) or _near(f"posture:{kind}", KINDS)
    return near or f" (there are {LABEL}NAME, {', '.join(KINDS)})"


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:128], known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _zones() -> list[str]:
    try:
        return sorted(available_timezones())
    except OSError:
        return []
