# SPDX-License-Identifier: Apache-2.0
"""Ports: ranges as they are written, and the prefixes that the kernel looks up.

The kernel finds a port by longest prefix in an LPM trie, so a range becomes the few aligned
blocks that cover exactly it, and an exception inside a range becomes one longer prefix.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final, TypeAlias

PORT_BITS: Final = 16
PORT_MAX: Final = 0xFFFF

Interval: TypeAlias = tuple[int, int, int]
"""(first port, last port, value), both ends included."""

_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports first..last, both included."""

    first: int  # 0..PORT_MAX
    last: int  # first..PORT_MAX

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


ALL_PORTS: Final = PortRange(0, PORT_MAX)


class PortError(ValueError):
    """Text that names no ports; `suggestion` may be empty."""

    def __init__(self, message: str, suggestion: str = "") -> None:
        self.message: Final = message
        self.suggestion: Final = suggestion
        super().__init__(message)


def parse_ports(text: str) -> PortRange:
    """The ports that "5432" or "6432-6440" names; raises PortError.

    Port 0 is refused: connect(2) and bind(2) give it a meaning of their own.
    """
    stripped = text.replace(" ", "")
    match = _RANGE.fullmatch(text)
    if match is None:
        tidy = re.sub(r"[:–—]|\.\.+", "-", stripped)  # noqa: RUF001 - dashes people paste
        hint = f'did you mean "{tidy}"?' if _RANGE.fullmatch(tidy) else 'write "443" or "8000-8010"'
        if "," in stripped:
            hint = "write each port as a string of its own"
        raise PortError("not a port or a range of ports", hint)
    first = int(match[1])
    last = int(match[2]) if match[2] is not None else first
    if first > PORT_MAX or last > PORT_MAX:
        raise PortError("no such port", f"ports are 1 to {PORT_MAX}")
    if first > last:
        raise PortError("the range runs backwards", f'did you mean "{last}-{first}"?')
    if first == 0:
        hint = f'did you mean "1-{last}"?' if last else f"ports are 1 to {PORT_MAX}"
        if last == PORT_MAX:
            hint = 'leave "ports" out to mean all of them'
        raise PortError("port 0 cannot be used", hint)
    return PortRange(first, last)


@lru_cache(maxsize=4096)
def range_to_prefixes(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """The fewest (port, leading bits) blocks that cover first..last and nothing else."""
    prefixes = []
    while first <= last:
        size_bits = (first & -first).bit_length() - 1 if first else PORT_BITS
        while first + (1 << size_bits) - 1 > last:
            size_bits -= 1
        prefixes.append((first, PORT_BITS - size_bits))
        first += 1 << size_bits
    return tuple(prefixes)


def overlay(below: Sequence[Interval], above: Iterable[Interval]) -> tuple[Interval, ...]:
    """Disjoint, ascending intervals in which, at each port, the best of the given ones counts.

    Anything in `above` beats anything in `below`; within each, the narrower range wins, then
    the greater value (so that the result never depends on the order of the input).
    """
    above = tuple(above)
    if not above:
        return tuple(below)
    if any(first == 0 and last == PORT_MAX for first, last, _ in above):
        below = ()
    if len(above) == 1 and not below:
        return above
    starts = [(first, last, (0, last - first, -value), value) for first, last, value in above]
    starts += [(first, last, (1, last - first, -value), value) for first, last, value in below]
    starts.sort()
    edges = sorted({entry[0] for entry in starts} | {entry[1] + 1 for entry in starts})
    heap: list[tuple[tuple[int, int, int], int, int]] = []
    result: list[Interval] = []
    at = 0
    for edge, following in pairwise(edges):
        while at < len(starts) and starts[at][0] <= edge:
            _, last, priority, value = starts[at]
            heapq.heappush(heap, (priority, last, value))
            at += 1
        while heap and heap[0][1] < edge:
            heapq.heappop(heap)
        if not heap:
            continue
        value = heap[0][2]
        if result and result[-1][2] == value and result[-1][1] + 1 == edge:
            result[-1] = (result[-1][0], following - 1, value)
        else:
            result.append((edge, following - 1, value))
    return tuple(result)


def intervals_to_prefixes(intervals: Sequence[Interval]) -> list[tuple[int, int, int]]:
    """(port, leading bits, value) entries whose longest match gives each port its interval's value.

    `intervals` are disjoint and ascending. Ports in no interval match no entry. Covered ports
    are compressed (ORTC, Draves et al. 1999): "all but 53" is two entries, not sixteen.
    """
    if len(intervals) == 1:
        first, last, value = intervals[0]
        return [(port, bits, value) for port, bits in range_to_prefixes(first, last)]
    # The blocks depend on the values only by which are equal: 10,000 networks with the same
    # ports for 10,000 resources share one computation.
    numbers: dict[int, int] = {}
    pattern = tuple(
        (first, last, numbers.setdefault(value, len(numbers))) for first, last, value in intervals
    )
    values = list(numbers)
    return [(port, bits, values[number]) for port, bits, number in _compressed(pattern)]


@lru_cache(maxsize=4096)
def _compressed(intervals: tuple[Interval, ...]) -> tuple[Interval, ...]:
    entries: list[tuple[int, int, int]] = []
    run: list[Interval] = []
    for interval in intervals:
        if run and run[-1][1] + 1 != interval[0]:
            entries += _run_to_prefixes(run)
            run = []
        run.append(interval)
    if run:
        entries += _run_to_prefixes(run)
    return tuple(entries)


def _run_to_prefixes(run: Sequence[Interval]) -> list[tuple[int, int, int]]:
    """Entries of a run without gaps: every block of its cover may have a default."""
    entries: list[tuple[int, int, int]] = []
    at = 0
    for port, bits in range_to_prefixes(run[0][0], run[-1][1]):
        last = port + (1 << (PORT_BITS - bits)) - 1
        while run[at][1] < port:
            at += 1
        end = at
        while run[end][1] < last:
            end += 1
        _emit(_node(run[at : end + 1], port, bits), port, bits, None, entries)
    return entries


_Node: TypeAlias = tuple[frozenset[int], "_Node | None", "_Node | None"]
"""Values with which a block needs the fewest entries, and its two halves (None: uniform)."""


def _node(intervals: Sequence[Interval], port: int, bits: int) -> _Node:
    if len(intervals) == 1:
        return frozenset((intervals[0][2],)), None, None
    middle = port + (1 << (PORT_BITS - bits - 1))
    left = _node([entry for entry in intervals if entry[0] < middle], port, bits + 1)
    right = _node([entry for entry in intervals if entry[1] >= middle], middle, bits + 1)
    return (left[0] & right[0]) or (left[0] | right[0]), left, right


def _emit(
    node: _Node,
    port: int,
    bits: int,
    inherited: int | None,
    entries: list[tuple[int, int, int]],
) -> None:
    values, left, right = node
    if inherited is None or inherited not in values:
        inherited = min(values)
        entries.append((port, bits, inherited))
    if left is not None and right is not None:
        _emit(left, port, bits + 1, inherited, entries)
        _emit(right, port + (1 << (PORT_BITS - bits - 1)), bits + 1, inherited, entries)


def clip(intervals: Sequence[Interval], mask: Sequence[Interval]) -> list[Interval]:
    """The parts of `intervals` whose ports are also in `mask`; both disjoint and ascending."""
    result = []
    at = 0
    for first, last, value in intervals:
        while at < len(mask) and mask[at][1] < first:
            at += 1
        position = at
        while position < len(mask) and mask[position][0] <= last:
            result.append((max(first, mask[position][0]), min(last, mask[position][1]), value))
            position += 1
    return result
