# SPDX-License-Identifier: Apache-2.0
"""Records added up by anything: nothing is left out, nothing is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.usage import Meter, UsageKind, UsageOwner, UsageRecord
from licagent.local.usage_shapes import USAGE_BY
from licagent.metering.tally import Tally, Wanted


def record(start: int = 0, end: int = 10, **changes: Any) -> UsageRecord:
    fields: dict[str, Any] = {
        "kind": UsageKind.COMPUTE,
        "start_unix_ms": start,
        "end_unix_ms": end,
        "quantities": {Meter.CPU_NS: 1},
    }
    return UsageRecord(**(fields | changes))


records = st.builds(
    record,
    st.integers(0, 20),
    st.integers(20, 40),
    kind=st.sampled_from(tuple(UsageKind)),
    quantities=st.dictionaries(st.sampled_from(tuple(Meter)), st.integers(1, 2**50), max_size=3),
    license=st.sampled_from(("", "a", "b")),
    resource=st.sampled_from(("", "cpu")),
    owner=st.builds(
        UsageOwner,
        unit=st.sampled_from(("", "x.service")),
        user=st.sampled_from(("", "root")),
        executable=st.sampled_from(("", "/bin/x")),
        pid=st.integers(0, 2),
    ),
)


@given(st.lists(records), st.sampled_from(USAGE_BY))
def test_rows_and_the_unattributed_line_are_the_sum_of_all(
    found: list[UsageRecord], by: str
) -> None:
    tally = Tally(Wanted(by))
    for each in found:
        tally.add(each)
    for meter in Meter:
        total = sum(each.quantities.get(meter, 0) for each in found)
        rows = sum(row.quantities.get(meter, 0) for row in tally.rows.values())
        assert rows + tally.unattributed.get(meter, 0) == total
    assert tally.records == len(found)
    if found:
        assert tally.start_unix_ms == min(each.start_unix_ms for each in found)
        assert tally.end_unix_ms == max(each.end_unix_ms for each in found)


@given(st.lists(records), st.integers(0, 40), st.integers(0, 40))
def test_windows_that_touch_share_no_record_that_ends_at_their_border(
    found: list[UsageRecord], one: int, other: int
) -> None:
    middle = min(one, other)
    inside = [each for each in found if each.end_unix_ms <= middle or each.start_unix_ms >= middle]
    counts = []
    for wanted in (Wanted(until_unix_ms=middle), Wanted(since_unix_ms=middle)):
        tally = Tally(wanted)
        for each in inside:
            if each.end_unix_ms > each.start_unix_ms:
                tally.add(each)
        counts.append(tally.records)
    assert sum(counts) == sum(each.end_unix_ms > each.start_unix_ms for each in inside)


@pytest.mark.parametrize("name", ["license", "resource", "unit", "user"])
def test_filters_match_exactly_and_the_empty_one_matches_none(name: str) -> None:
    def named(value: str) -> UsageRecord:
        fields: dict[str, Any] = {name: value}
        if name in ("license", "resource"):
            return record(**fields)
        return record(owner=UsageOwner(**fields))

    unattributed = record(kind=UsageKind.UNATTRIBUTED, detail="x")
    for wanted in ("", "a"):
        asked: dict[str, Any] = {name: wanted}
        tally = Tally(Wanted("license", **asked))
        for each in (named(""), named("a"), named("ab"), unattributed):
            tally.add(each)
        assert tally.records == 1
        assert tally.unattributed == {}


def test_what_differs_within_a_row_is_not_said_of_it() -> None:
    tally = Tally(Wanted("unit"))
    for user in ("alice", "bob"):
        owner = UsageOwner(unit="x.service", user=user, executable="/bin/x")
        tally.add(record(owner=owner, license="a", estimated=frozenset((Meter.CPU_NS,))))
    (row,) = tally.rows.values()
    assert row.values == {
        "unit": "x.service",
        "user": None,
        "executable": "/bin/x",
        "license": "a",
        "resource": "",
    }
    assert row.estimated == {Meter.CPU_NS}


def test_details_say_each_reason_once() -> None:
    tally = Tally(Wanted())
    for detail in ("x", "x", "y"):
        tally.add(record(kind=UsageKind.UNATTRIBUTED, detail=detail))
    tally.add(record(kind=UsageKind.UNATTRIBUTED, quantities={}, detail="only says what is not"))
    tally.add(record(kind=UsageKind.GAP, quantities={}, detail="restarted"))
    assert tally.details == ["x", "y", "restarted"]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 1000)), max_size=300))
def test_of_very_many_rows_the_smallest_are_one_and_the_sum_is_the_same(
    uses: list[tuple[int, int]],
) -> None:
    tally = Tally(Wanted("process"), rows_kept=10)
    whole = Tally(Wanted("process"))
    for pid, cpu_ns in uses:
        each = record(owner=UsageOwner(pid=pid), quantities={Meter.CPU_NS: cpu_ns})
        tally.add(each)
        whole.add(each)
    assert len(tally.rows) <= 15
    assert len(tally.rows) + tally.folded_rows == len(whole.rows)
    for key, row in tally.rows.items():
        assert row.quantities == whole.rows[key].quantities
    shown = sum(row.quantities[Meter.CPU_NS] for row in tally.rows.values())
    assert shown + tally.folded.get(Meter.CPU_NS, 0) == sum(cpu_ns for _pid, cpu_ns in uses)
