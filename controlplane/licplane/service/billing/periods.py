# SPDX-License-Identifier: Apache-2.0
"""Periods of the calendar, in UTC: days, weeks from Monday, months."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from licplane.errors import ExitCode, PlaneError

PERIODS: Final = ("hour", "day", "week", "month")
_LABEL: Final = re.compile(r"(\d{4})-(?:(\d{2})(?:-(\d{2})(?:T(\d{2}))?)?|W(\d{2}))", re.ASCII)


@dataclass(frozen=True, slots=True)
class Period:
    """From `start_ms` up to, and without, `end_ms`."""

    label: str  # 2026-10, 2026-W44, 2026-10-31 or 2026-10-31T13
    start_ms: int
    end_ms: int


def period_at(kind: str, unix_ms: int) -> Period:
    """The period of this kind that holds a moment."""
    at = datetime.fromtimestamp(unix_ms / 1000, UTC).replace(minute=0, second=0, microsecond=0)
    if kind == "hour":
        return _made(at.strftime("%Y-%m-%dT%H"), at, at + timedelta(hours=1))
    at = at.replace(hour=0)
    if kind == "day":
        return _made(at.strftime("%Y-%m-%d"), at, at + timedelta(days=1))
    if kind == "week":
        at -= timedelta(days=at.weekday())
        return _made(at.strftime("%G-W%V"), at, at + timedelta(days=7))
    at = at.replace(day=1)
    return _made(at.strftime("%Y-%m"), at, (at + timedelta(days=31)).replace(day=1))


def period_of(kind: str, label: str) -> Period:
    """The period of this kind with this label. Raises PlaneError USAGE."""
    found = _LABEL.fullmatch(label)
    try:
        if found is None:
            raise ValueError(label)
        year, month, day, hour, week = found.groups()
        if week is not None:
            at = datetime.fromisocalendar(int(year), int(week), 1).replace(tzinfo=UTC)
        else:
            at = datetime(int(year), int(month), int(day or 1), int(hour or 0), tzinfo=UTC)
        period = period_at(kind, int(at.timestamp()) * 1000)
        if period.label != label:
            raise ValueError(label)
    except (ValueError, OverflowError) as error:
        form = {"hour": "2026-10-31T13", "day": "2026-10-31", "week": "2026-W44"}
        raise PlaneError(
            ExitCode.USAGE,
            f"{label[:40]!r} is no {kind}",
            f"Write it as {form.get(kind, '2026-10')}",
        ) from error
    return period


def _made(label: str, start: datetime, end: datetime) -> Period:
    return Period(label, int(start.timestamp()) * 1000, int(end.timestamp()) * 1000)
