# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.cli.top.arrange import View, arrange
from licagent.cli.top.batch import as_object, as_text
from licagent.cli.top.model import LEVELS, TOTALS, compare, read_snapshot
from licagent.cli.top.poll import Poll
from licagent.local.usage_shapes import TOP_BY, TOP_COLUMNS

SECOND = 10**9


def answer(
    rows: list[dict[str, Any]], *, at_s: float, by: str = "process", **more: Any
) -> dict[str, Any]:
    return {
        "by": by, "boot": "one", "started_ns": 5, "at_boottime_ns": int(at_s * SECOND),
        "columns": list(TOP_COLUMNS),
        "rows": [[row.get(name) for name in TOP_COLUMNS] for row in rows],
    } | more  # fmt: skip


def rates(before: dict[str, Any], now: dict[str, Any], meter: str = "cpu_ns") -> list[float | None]:
    sample = compare(read_snapshot(before), read_snapshot(now))
    return [line.rates[meter] for line in sample.lines]


def test_a_rate_is_growth_by_the_kernels_clock():
    row = {"pid": 7, "start_ns": 1, "cpu_ns": 10}
    assert rates(answer([row], at_s=10), answer([row | {"cpu_ns": 10 + SECOND}], at_s=12)) == [5e8]


def test_a_new_process_used_all_it_has_within_the_interval():
    row = {"pid": 7, "start_ns": 1, "cpu_ns": SECOND}
    assert rates(answer([], at_s=10), answer([row], at_s=12)) == [5e8]


def test_a_pid_that_is_used_again_is_another_process():
    old, new = {"pid": 7, "start_ns": 1, "cpu_ns": 900}, {"pid": 7, "start_ns": 2, "cpu_ns": 100}
    assert rates(answer([old], at_s=10), answer([new], at_s=11)) == [100]


@pytest.mark.parametrize("by", ["unit", "license"])
def test_a_unit_that_comes_back_brings_totals_of_before_and_has_no_rate_yet(by):
    row = {"name": "etl.service", "cpu_ns": SECOND}
    before, now = answer([], at_s=10, by=by), answer([row], at_s=12, by=by)
    assert rates(before, now) == [None]


def test_the_short_lived_of_pid_0_are_told_apart_by_their_names():
    def rows(factor: int) -> list[dict[str, Any]]:
        return [{"pid": 0, "start_ns": 0, "name": name, "cpu_ns": factor * amount}
                for name, amount in (("cc", 10), ("sh", 30))]  # fmt: skip

    assert rates(answer(rows(1), at_s=1), answer(rows(2), at_s=2)) == [10, 30]


@pytest.mark.parametrize(
    "other", [{"boot": "two"}, {"started_ns": 6}, {"by": "unit"}, {"at_boottime_ns": 12 * SECOND}]
)
def test_readings_of_two_runs_and_of_one_moment_have_no_rates(other):
    row = {"pid": 7, "start_ns": 1, "name": "x", "cpu_ns": 10}
    before = answer([row], at_s=12) | ({} if "at_boottime_ns" in other else {"at_boottime_ns": 1})
    sample = compare(read_snapshot(before), read_snapshot(answer([row], at_s=12, **other)))
    assert sample.interval_ns == 0
    assert [line.rates["cpu_ns"] for line in sample.lines] == [None]


def test_what_is_not_measured_has_no_rate_and_a_total_that_falls_neither():
    before = {"pid": 7, "start_ns": 1, "cpu_ns": None, "read_bytes": 50}
    now = {"pid": 7, "start_ns": 1, "cpu_ns": None, "read_bytes": 40}
    assert rates(answer([before], at_s=1), answer([now], at_s=2)) == [None]
    assert rates(answer([before], at_s=1), answer([now], at_s=2), "read_bytes") == [None]


def test_the_same_reading_twice_keeps_its_rates(host):
    poll = Poll(host.ask)
    poll.sample("process")
    sample = poll.sample("process")
    host.step_ns = 0
    host.growth = {key: {} for key in host.growth}
    assert poll.sample("process") is sample
    assert sample.interval_ns == SECOND


def test_rates_add_up_to_the_hosts(host):
    poll = Poll(host.ask)
    poll.sample("process")
    sample = poll.sample("process")
    assert sample.host_rates["cpu_ns"] == 1.5 * SECOND
    assert sample.host_rates["host_cpu_ns"] == SECOND
    assert sample.unattributed_rates["cpu_ns"] == SECOND / 100


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**63) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["by", "metering", "boot", "started_ns", "at", "at_boottime_ns", "host", "meters", "columns",
     "rows", "unattributed"]
)  # fmt: skip
ROWS = st.lists(
    st.lists(st.none() | st.integers(-2, 5) | st.text(max_size=3), max_size=len(TOP_COLUMNS)),
    max_size=6,
)


@given(
    st.lists(st.fixed_dictionaries({"rows": ROWS, "at_boottime_ns": st.integers(0, 9)}), min_size=2,
             max_size=2),
    st.dictionaries(KEYS, ANYTHING, max_size=4),
    st.sampled_from(TOP_BY),
    st.booleans(),
    st.none() | st.integers(1, 200),
)  # fmt: skip
def test_whatever_a_daemon_answers_is_shown_and_no_traceback(answers, more, by, is_tree, width):
    snapshots = [
        read_snapshot({"by": by, "columns": list(TOP_COLUMNS), **each, **more}) for each in answers
    ]
    sample = compare(*snapshots)
    view = View(by=by, is_tree=is_tree)
    text = list(as_text(sample, view, width=width))
    assert len(text) == 5 + len(snapshots[1].rows) or is_tree
    assert all("\n" not in line and "\x1b" not in line for line in text)
    json.dumps(as_object(sample, view), allow_nan=False)
    for line in sample.lines:
        assert set(line.rates) == set(TOTALS)
        assert set(line.row.amounts) == {*TOTALS, *LEVELS}


def test_arrange_shows_each_row_once(host):
    sample = Poll(host.ask).sample("process")
    for is_tree in (False, True):
        shown = arrange(sample.lines, View(is_tree=is_tree))
        assert sorted(each.line.row.pid for each in shown) == [4242, 4300, 5120]
