# SPDX-License-Identifier: Apache-2.0
"""Fields that price plans, triggers and budgets have in common: meters, units, numbers, filters."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from licplane.service.billing.pricing import MEASURE, UNITS, Choice, units_of
from licplane.store.money_schema import METERS
from lictoken.errors import Refusal, TokenError
from lictoken.fields import Fields

_NUMBER: Final = re.compile(r"\d{1,24}(\.\d{1,18})?", re.ASCII)
CHOICE: Final = (
    "licenses",
    "resources",
    "organizations",
    "projects",
    "environments",
    "regions",
    "hosts",
)
"""Which usage counts: names of patterns,"""
FLAGS: Final = ("loopback", "unlicensed", "unattributed")
"""and of flags."""


def choice_of(fields: Fields) -> Choice:
    """Which usage counts: patterns, and flags."""
    flags: dict[str, Any] = {}
    for name in FLAGS:
        value = fields.get(name, False)
        if not isinstance(value, bool):
            raise bad_value(f"{fields.place(name)} is not true or false")
        flags[name] = value
    patterns: dict[str, Any] = {name: fields.texts(name) for name in CHOICE}
    return Choice(**patterns, **flags)


def meters_of(fields: Fields) -> tuple[str, ...]:
    """The meters, of which there is one at least."""
    found = fields.texts("meters")
    if not found:
        raise bad_value(f"{fields.place('meters')} names none of {', '.join(METERS)}")
    for one in found:
        if one not in METERS:
            raise bad_value(
                f"{fields.place('meters')}: {one[:40]!r} is none of {', '.join(METERS)}"
            )
    return found


def unit_of(fields: Fields, meters: tuple[str, ...]) -> str:
    """The unit that all these meters are counted in."""
    unit = fields.choice("unit", tuple(UNITS), MEASURE.get(meters[0], "GB"))
    for meter in meters:
        if unit not in units_of(meter):
            fitting = ", ".join(name for name in UNITS if name in units_of(meter))
            raise bad_value(f"{fields.place('unit')}: {meter} is counted in {fitting}")
    return unit


def numbers_of(fields: Fields, name: str) -> tuple[Decimal, ...]:
    """Numbers above 0 that rise."""
    found = tuple(
        _decimal(one, f"{fields.place(name)}[{at}]")
        for at, one in enumerate(list_of(fields, name, 32))
    )
    if any(one >= other for one, other in itertools.pairwise(found)) or found[0] <= 0:
        raise bad_value(f"{fields.place(name)} must be above 0, and rise")
    return found


def number_of(fields: Fields, name: str, default: Decimal | None = None) -> Decimal:
    """A number of 0 and up."""
    if default is not None and not fields.has(name):
        return default
    return _decimal(fields.get(name), fields.place(name))


def _decimal(value: object, place: str) -> Decimal:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        raise bad_value(f'{place} is no number of 0 and up, written as 12 or "0.035"')
    try:
        return Decimal(value)
    except InvalidOperation as error:  # pragma: no cover - the pattern sees to it
        raise bad_value(f"{place} is no number") from error


def list_of(fields: Fields, name: str, most: int) -> list[object]:
    """A list of 1 to `most` entries."""
    found = fields.items(name)
    if not 1 <= len(found) <= most:
        raise bad_value(f"{fields.place(name)} has {len(found)} entries, not 1 to {most}")
    return found


def bad_value(detail: str) -> TokenError:
    """The error for a value that cannot be taken."""
    return TokenError(Refusal.BAD_VALUE, detail)
