# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.usage import Meter, UsageKind, UsageOwner, UsageRecord
from licagent.domain.usage_merge import QUANTITY_MAX, merge

meters = st.sampled_from(list(Meter))
owners = st.builds(
    UsageOwner,
    unit=st.sampled_from(["a.service", "b.service"]),
    pid=st.sampled_from([0, 1, 2]),
    process_start_unix_ms=st.sampled_from([0, 5]),
)
records = st.builds(
    UsageRecord,
    kind=st.sampled_from(list(UsageKind)),
    start_unix_ms=st.integers(0, 100),
    end_unix_ms=st.integers(100, 200),
    quantities=st.dictionaries(
        meters, st.one_of(st.integers(0, 9), st.integers(0, QUANTITY_MAX)), max_size=4
    ),
    owner=owners,
    license=st.sampled_from(["", "lic-1"]),
    protocol=st.sampled_from([0, 6]),
    estimated=st.frozensets(meters, max_size=2),
    unsupported=st.frozensets(meters, max_size=1),
)


def sums(some: list[UsageRecord]) -> Counter[tuple[object, ...]]:
    total: Counter[tuple[object, ...]] = Counter()
    for each in some:
        who = each.kind, each.owner.unit, each.license, each.protocol, each.unsupported
        for meter, quantity in each.quantities.items():
            total[*who, meter] += quantity
    return +total


@given(st.lists(records, max_size=30), st.booleans())
def test_sums_are_the_same_to_the_unit(some: list[UsageRecord], by_process: bool) -> None:
    merged = merge(some, by_process=by_process)
    assert sums(merged) == sums(some)
    assert len(merged) <= len(some)
    for each in merged:
        assert all(quantity <= QUANTITY_MAX for quantity in each.quantities.values())
    if some:
        assert min(e.start_unix_ms for e in merged) == min(e.start_unix_ms for e in some)
        assert max(e.end_unix_ms for e in merged) == max(e.end_unix_ms for e in some)
    gaps = [each for each in some if each.kind is UsageKind.GAP]
    assert [each for each in merged if each.kind is UsageKind.GAP] == gaps
    assert {m for e in merged for m in e.estimated} == {m for e in some for m in e.estimated}
    if not by_process:
        usage = [each for each in merged if each.kind is not UsageKind.GAP]
        assert not any(each.owner.pid for each in usage)


def test_a_year_of_intervals_is_one_record() -> None:
    some = [
        UsageRecord(UsageKind.COMPUTE, at, at + 5, {Meter.CPU_NS: at}) for at in range(0, 500, 5)
    ]
    (one,) = merge(some)
    assert (one.start_unix_ms, one.end_unix_ms) == (0, 500)
    assert one.quantities == {Meter.CPU_NS: sum(range(0, 500, 5))}


def test_a_sum_beyond_a_column_is_several_records() -> None:
    big = UsageRecord(UsageKind.COMPUTE, 0, 1, {Meter.MEMORY_BYTE_MS: QUANTITY_MAX})
    assert merge([big, big]) == [big, big]
