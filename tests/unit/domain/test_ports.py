# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.ports import (
    Interval,
    PortError,
    PortRange,
    clip,
    intervals_to_prefixes,
    overlay,
    parse_ports,
    range_to_prefixes,
)

PORT = st.integers(0, 65535) | st.sampled_from([0, 1, 52, 53, 54, 1023, 1024, 65534, 65535])
RANGE = st.tuples(PORT, PORT).map(lambda pair: (min(pair), max(pair)))
INTERVALS = st.lists(st.tuples(RANGE, st.integers(1, 4)).map(lambda e: (*e[0], e[1])), max_size=12)


def probes(*groups: list[Interval]) -> set[int]:
    """The ports at which anything can change, and their neighbours."""
    edges = {edge for group in groups for first, last, _ in group for edge in (first, last)}
    near = {edge + step for edge in edges | {0, 65535} for step in (-1, 0, 1)}
    return {port for port in near if 0 <= port <= 65535}


def best(intervals: list[Interval], port: int) -> int | None:
    found = [(last - first, -value) for first, last, value in intervals if first <= port <= last]
    return -min(found)[1] if found else None


def longest(prefixes: list[tuple[int, int, int]], port: int) -> int | None:
    found = [
        (bits, value)
        for start, bits, value in prefixes
        if start >> (16 - bits) == port >> (16 - bits)
    ]
    return max(found)[1] if found else None


@given(RANGE)
def test_prefixes_cover_exactly_the_range(ports: tuple[int, int]) -> None:
    covered: list[int] = []
    for port, bits in range_to_prefixes(*ports):
        size = 1 << (16 - bits)
        assert port % size == 0
        covered += range(port, port + size)
    assert covered == list(range(ports[0], ports[1] + 1))


@given(INTERVALS, INTERVALS)
def test_overlay_is_the_narrowest_of_the_upper_then_of_the_lower(
    below: list[Interval], above: list[Interval]
) -> None:
    lower = overlay((), below)
    merged = overlay(lower, above)
    assert all(one[1] < other[0] for one, other in pairwise(merged))
    for port in probes(below, above):
        upper = best(above, port)
        expected = upper if upper is not None else best(below, port)
        assert best(list(merged), port) == expected


@given(INTERVALS)
def test_longest_prefix_gives_each_port_its_interval(entries: list[Interval]) -> None:
    intervals = overlay((), entries)
    prefixes = intervals_to_prefixes(intervals)
    assert len({(port, bits) for port, bits, _ in prefixes}) == len(prefixes)
    for port in probes(entries):
        assert longest(prefixes, port) == best(list(intervals), port)


def test_an_exception_costs_one_entry() -> None:
    assert intervals_to_prefixes(overlay([(0, 65535, 1)], [(53, 53, 2)])) == [
        (0, 0, 1),
        (53, 16, 2),
    ]


@given(INTERVALS, INTERVALS)
def test_clip_keeps_what_the_mask_covers(entries: list[Interval], mask: list[Interval]) -> None:
    intervals, cover = overlay((), entries), overlay((), mask)
    clipped = clip(intervals, cover)
    for port in probes(entries, mask):
        inside = best(list(cover), port) is not None
        assert best(clipped, port) == (best(list(intervals), port) if inside else None)


@pytest.mark.parametrize(
    ("text", "ports"), [("1", (1, 1)), ("5432", (5432, 5432)), ("6432-6440", (6432, 6440))]
)
def test_reads_ports(text: str, ports: tuple[int, int]) -> None:
    assert parse_ports(text) == PortRange(*ports)


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("", "443"),
        ("http", "443"),
        ("80:90", '"80-90"'),
        ("80 - 90", '"80-90"'),
        ("80,90", "of its own"),
        ("90-80", '"80-90"'),
        ("65536", "65535"),
        ("0", "65535"),
        ("0-1023", '"1-1023"'),
        ("0-65535", "leave"),
        ("٨٠", "443"),
        ("-1", "443"),
    ],
)
def test_refuses_what_names_no_ports(text: str, suggestion: str) -> None:
    with pytest.raises(PortError) as caught:
        parse_ports(text)
    assert suggestion in caught.value.suggestion
