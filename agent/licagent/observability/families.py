# SPDX-License-Identifier: Apache-2.0
"""What a metric is, before any format: its name, kind, meaning and labels, and how it is bounded.

Names follow Prometheus' conventions (prometheus.io/docs/practices/naming): one unit a metric, base
units (seconds, bytes), counters end in `_total`, points in time are `_timestamp_seconds` since
1970. No label ever holds a process id or an address, and each has a bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["counter", "gauge"]

NONE: Final = "none"
"""The value of a label where there is nothing to name: use without a license, say."""
OTHER: Final = "other"
"""The value of a label for all that its bound leaves out."""

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. ValueError where its name breaks the conventions."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bound: str = ""
    """What keeps the number of series down, for people; needed where there are labels."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name of a metric")
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: counters, and only they, end in _total")
        if bool(self.labels) != bool(self.bound):
            raise ValueError(f"{self.name}: labels need a bound, and only they")


@dataclass(slots=True)
class Readings:
    """The samples of one moment: adding twice to one series adds up."""

    families: Mapping[str, Family]
    _found: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)

    def put(self, name: str, value: float, *labels: str) -> None:
        """Add to a series; label values in the family's order. KeyError for an unknown metric."""
        family = self.families[name]
        if len(labels) != len(family.labels):
            raise ValueError(f"{name} has the labels {family.labels}, not {labels}")
        series = self._found.setdefault(name, {})
        series[labels] = series.get(labels, 0) + value

    def lowest(self, name: str, value: float, *labels: str) -> None:
        """As `put`, but of two values for one series the lower one stays."""
        series = self._found.get(name, {})
        if labels in series:
            series[labels] = min(series[labels], value)
        else:
            self.put(name, value, *labels)

    def of(self, name: str) -> Mapping[tuple[str, ...], float]:
        """The series of a metric that were put."""
        return self._found.get(name, {})

    def __iter__(self) -> Iterator[tuple[Family, Mapping[tuple[str, ...], float]]]:
        """Each metric that has a value, in the table's order."""
        for name, family in self.families.items():
            if name in self._found:
                yield family, self._found[name]


def table(families: Iterable[Family]) -> dict[str, Family]:
    """Metrics by name. ValueError where two have one name."""
    found: dict[str, Family] = {}
    for family in families:
        if family.name in found:
            raise ValueError(f"two metrics are called {family.name}")
        found[family.name] = family
    return found


class Admitted:
    """The label values that have a series of their own: the first that come, up to a bound.

    Who was let in stays in, so that a counter never moves from a series of its own to `other`,
    which Prometheus would take for a restart of both.
    """

    def __init__(self, most: int, known: Iterable[tuple[str, ...]] = ()) -> None:
        """`known`: those of an earlier run, which come first."""
        self._most = most
        self._keys: dict[tuple[str, ...], None] = dict.fromkeys(known)

    def of(self, *values: str) -> tuple[str, ...]:
        """`values`, or as many times `other` where there is no room for them."""
        if values in self._keys:
            return values
        if len(self._keys) >= self._most:
            return (OTHER,) * len(values)
        self._keys[values] = None
        return values
