# SPDX-License-Identifier: Apache-2.0
"""Values in words: times, amounts, and text that comes from strangers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    _SecondsType = click.ParamType[int]
    _TextType = click.ParamType[str]
else:
    # The class takes type arguments from click 8.5 on only.
    _SecondsType = _TextType = click.ParamType

NOTHING: Final = "-"

# Everything that moves a cursor, starts a line, or turns the direction of text: names of
# processes and files are chosen by whoever runs them.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = re.compile(r"(\d{1,9})([smhd])")


def safe(value: object) -> str:
    """`value` as text that can do nothing but be read; `-` for None and ""."""
    if value is None or value == "":
        return NOTHING
    text = value if isinstance(value, str) else str(value)
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates of file names
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def duration(seconds: object) -> str:
    """`3 d 4 h`, `12 min 5 s`, `-` if unknown; a past moment is `ended`."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return NOTHING
    left = int(seconds)
    if left <= 0:
        return "ended"
    parts = []
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size:
            parts.append(f"{left // size} {name}")
            left %= size
        elif parts:
            break  # two neighbouring units say enough
        if len(parts) == 2:
            break
    return " ".join(parts)


def ends_in(state: object, remaining_s: object) -> str:
    """How long a license in this state still holds; `-` if it does not."""
    return duration(remaining_s) if state == "valid" else NOTHING


def amount(count_bytes: object) -> str:
    """`1.4 MiB`; bytes below 1 KiB exactly."""
    if not isinstance(count_bytes, int) or isinstance(count_bytes, bool):
        return NOTHING
    value, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def compact(number: object) -> str:
    """`1.4M` in at most five characters, units of 1024; `n/a` for None: not measured."""
    if not isinstance(number, int | float) or isinstance(number, bool):
        return "n/a"
    value, unit = float(number), ""
    for larger in "KMGTPEZY":
        if value < 1023.5:
            break
        value, unit = value / 1024, larger
    if not unit or value >= 99.95:
        return f"{value:.0f}{unit}"
    return f"{value:.1f}{unit}"


def cpu_time(nanoseconds: object) -> str:
    """`0.01s`, `12.5s`, `3m12s`, `5h07m`, `12d04h` in at most seven characters; `n/a` for None."""
    if not isinstance(nanoseconds, int | float) or isinstance(nanoseconds, bool):
        return "n/a"
    seconds = nanoseconds / 1e9
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for limit, larger, smaller, names in (
        (3600, 60, 1, "ms"),
        (86_400, 3600, 60, "hm"),
        (1000 * 86_400, 86_400, 3600, "dh"),
    ):
        if whole < limit:
            return f"{whole // larger}{names[0]}{whole % larger // smaller:02}{names[1]}"
    return f"{whole // 86_400}d"


def count(number: object, noun: str) -> str:
    """`1 rule`, `2 rules`."""
    return f"{safe(number)} {noun}" if number == 1 else f"{safe(number)} {noun}s"


def parse_duration(text: str) -> int | None:
    """Seconds of `90s`, `15m`, `1h30m`, `2d`; None if it is no duration."""
    position, total_s = 0, 0
    for match in _DURATION.finditer(text):
        if match.start() != position:
            return None
        position = match.end()
        total_s += int(match[1]) * _UNITS_S[match[2]]
    return total_s if text and position == len(text) else None


class Duration(_SecondsType):
    """A command-line duration, in seconds, within bounds."""

    name = "duration"

    def __init__(self, minimum_s: int, maximum_s: int) -> None:
        self._minimum_s = minimum_s
        self._maximum_s = maximum_s

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The seconds; a usage error that says how to write it otherwise."""
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no duration; write 90s, 15m, 1h30m or 2d", param, ctx)
        if not self._minimum_s <= seconds <= self._maximum_s:
            bounds = f"{duration(self._minimum_s)} to {duration(self._maximum_s)}"
            self.fail(f"{value!r} is outside {bounds}", param, ctx)
        return seconds


class Moment(_TextType):
    """A moment: RFC 3339, or a duration before now. Becomes RFC 3339 UTC text."""

    name = "moment"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """`2026-01-02T03:04:05Z` of that, of `...+02:00`, or of `10m`."""
        text = str(value)
        seconds = parse_duration(text)
        if seconds is not None:
            return rfc3339(datetime.now(UTC) - timedelta(seconds=seconds))
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is no moment; write 10m or 2026-01-02T03:04:05Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{text!r} names no time zone; end it with Z or +02:00", param, ctx)
        return rfc3339(moment.astimezone(UTC))


def rfc3339(moment: datetime) -> str:
    """RFC 3339 UTC with milliseconds and a Z, as events have it."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
