# SPDX-License-Identifier: Apache-2.0
"""Where a period will end, if days go on as they were, and how far that may be off.

The method: the mean of up to 28 whole days before now, times what is left of the period. The
interval is that in which the sum of the days to come lies with a probability of 80 %, for days
that are independent and normally distributed about one mean (Student's t; both the days' own
spread and that of the mean are in it). It is as good as that assumption: a load that grows, or
has weekends, leaves it more often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

DAYS: Final = 28
"""Whole days that are looked back at."""
CONFIDENCE: Final = 80
"""Percent, two-sided."""
MIN_DAYS: Final = 3
"""With fewer there is no interval."""
METHOD: Final = (
    f"mean of the last whole days, at most {DAYS}, over the days that are left;"
    f" {CONFIDENCE} % prediction interval by Student's t"
)
_T: Final = (
    (1, 3.078), (2, 1.886), (3, 1.638), (4, 1.533), (5, 1.476), (6, 1.440), (7, 1.415),
    (8, 1.397), (9, 1.383), (10, 1.372), (12, 1.356), (15, 1.341), (20, 1.325), (25, 1.316),
    (30, 1.310),
)  # fmt: skip
"""0.9 quantiles by degrees of freedom; in between the next lower one, which is wider."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is to come on top of what was used, in the meter's unit."""

    days: int  # whole days it rests on
    expected: int
    low: int | None  # None: too few days for an interval
    high: int | None


def forecast(history: Sequence[int], left_days: Fraction) -> Forecast:
    """What is to come in `left_days` after days like those of `history`. 0 where it is empty."""
    days = list(history[-DAYS:])
    count = len(days)
    if not count or left_days <= 0:
        none = None if count < MIN_DAYS and left_days > 0 else 0
        return Forecast(count, 0, none, none)
    mean = Fraction(sum(days), count)
    expected = round(mean * left_days)
    if count < MIN_DAYS:
        return Forecast(count, expected, None, None)
    variance = sum((day - mean) ** 2 for day in days) / (count - 1)
    left = float(left_days)
    spread = quantile(count - 1) * math.sqrt(float(variance) * (left + left * left / count))
    return Forecast(count, expected, max(0, expected - round(spread)), expected + round(spread))


def quantile(freedom: int) -> float:
    """Student's t for 90 % one-sided."""
    return next(value for degrees, value in reversed(_T) if degrees <= max(1, freedom))
