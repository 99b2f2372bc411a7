# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.cli.commands.top import SORT_WORDS
from licagent.cli.top.arrange import FIGURES, SORTS, TEXTS, View, arrange
from licagent.cli.top.model import LEVELS, TOTALS, Line, Row
from licagent.cli.top.poll import Poll


def line(
    pid: int, parent: int = 0, *, start: int | None = None, cpu: float | None = 0, **more: object
) -> Line:
    amounts = dict.fromkeys((*TOTALS, *LEVELS), 0)
    texts = {"name": f"p{pid}", "executable": "", "user": "", "unit": "", "license": ""}
    start = pid if start is None else start
    row = Row(key=(pid, start), pid=pid, start_ns=start, parent=parent, exited_ns=0, processes=1,
              amounts=amounts, **texts)  # fmt: skip
    return Line(replace(row, **more), dict.fromkeys(TOTALS, 0.0) | {"cpu_ns": cpu})


def pids(lines: list[Line], view: View) -> list[int]:
    return [each.line.row.pid for each in arrange(lines, view)]


def test_the_commands_words_are_the_sort_keys():
    assert set(SORT_WORDS) == set(SORTS)


@pytest.mark.parametrize("sort", SORTS)
def test_every_column_sorts_both_ways(host, sort):
    poll = Poll(host.ask)
    poll.sample("process")
    lines = poll.sample("process").lines
    order = [each.line.row.pid for each in arrange(lines, View(sort=sort))]
    back = [each.line.row.pid for each in arrange(lines, View(sort=sort, is_reversed=True))]
    assert sorted(order) == sorted(back) == [4242, 4300, 5120]
    if sort in ("cpu", "read", "time", "pid", "command"):
        assert order != back


def test_large_amounts_and_small_names_come_first_and_the_unknown_last():
    lines = [line(1, cpu=None), line(2, cpu=5), line(3, cpu=7)]
    assert pids(lines, View(sort="cpu")) == [3, 2, 1]
    assert pids(lines, View(sort="cpu", is_reversed=True)) == [2, 3, 1]
    assert pids(lines, View(sort="pid")) == [1, 2, 3]
    named = [line(1, user=""), line(2, user="Zoe"), line(3, user="adam")]
    assert pids(named, View(sort="user")) == [3, 2, 1]
    assert pids(named, View(sort="user", is_reversed=True)) == [2, 3, 1]


def test_equal_lines_stay_where_they_are():
    lines = [line(pid) for pid in (5, 3, 9, 1)]
    assert pids(lines, View()) == pids(lines[::-1], View()) == [1, 3, 5, 9]


def test_totals_and_wire_choose_what_is_sorted_by():
    one = line(1)
    many = replace(one.row, key=(2, 2), pid=2, amounts=dict(one.row.amounts) | {"cpu_ns": 9})
    lines = [replace(one, rates=dict(one.rates) | {"cpu_ns": 3.0}), replace(one, row=many)]
    assert pids(lines, View(sort="cpu")) == [1, 2]
    assert pids(lines, View(sort="cpu", totals=True)) == [2, 1]


@pytest.mark.parametrize(
    ("view", "left"),
    [
        (View(text="ORD"), [4242]),
        (View(text="ord|curl"), [4242, 5120]),
        (View(text="|"), [4242, 4300, 5120]),
        (View(text="worker.service"), [4300]),
        (View(text="acme"), [4242]),
        (View(user="alice"), [4300, 5120]),
        (View(license="acme-orders-2026"), [4242]),
        (View(license=""), [4300, 5120]),
        (View(exited=False), [4242, 4300]),
        (View(pids=frozenset({4300})), [4300]),
        (View(pids=frozenset({1})), []),
    ],
)
def test_filters(host, view, left):
    lines = Poll(host.ask).sample("process").lines
    assert pids(list(lines), replace(view, sort="pid")) == left


def test_kernel_threads_can_be_left_out():
    lines = [line(1, executable="[kthreadd]"), line(2, executable="/bin/true")]
    assert pids(lines, View(kernel_threads=False)) == [2]


def test_a_tree_draws_branches_in_either_alphabet():
    lines = [line(1), line(2, 1), line(3, 2), line(4, 1)]
    view = View(is_tree=True, sort="pid")
    assert [(each.line.row.pid, each.branch) for each in arrange(lines, view)] == [
        (1, ""), (2, "├─ "), (3, "│ └─ "), (4, "└─ ")
    ]  # fmt: skip
    assert [each.branch for each in arrange(lines, view, is_ascii=True)] == [
        "", "|- ", "| `- ", "`- "
    ]  # fmt: skip


def test_what_is_filtered_for_keeps_its_parents_as_a_frame():
    lines = [line(1), line(2, 1), line(3, 2), line(4, 1)]
    shown = arrange(lines, View(is_tree=True, text="p3"))
    assert [(each.line.row.pid, each.is_frame) for each in shown] == [
        (1, True), (2, True), (3, False)
    ]  # fmt: skip


def test_folded_branches_hide_what_is_below():
    lines = [line(1), line(2, 1), line(3, 2)]
    shown = arrange(lines, View(is_tree=True, folded=frozenset({(2, 2), (3, 3)})))
    assert [(each.line.row.pid, each.is_folded) for each in shown] == [(1, False), (2, True)]


def test_a_pid_given_again_is_no_parent_of_what_is_older():
    # 7 was the parent, ended, and its number went to a younger process.
    assert [
        each.branch for each in arrange([line(7, start=9), line(8, 7, start=2)], View(is_tree=True))
    ] == ["", ""]


def test_a_chain_longer_than_pythons_stack():
    lines = [line(pid, pid - 1) for pid in range(1, 3000)]
    assert len(arrange(lines, View(is_tree=True))) == 2999


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), max_size=14,
             unique_by=lambda each: (each[0], each[2])),
    st.sampled_from([*FIGURES, *TEXTS]),
    st.booleans(),
    st.sampled_from(["", "p1", "p2|p3"]),
)  # fmt: skip
def test_any_parents_make_a_tree_of_all_lines(given_lines, sort, is_reversed, text):
    lines = [line(pid, parent, start=start) for pid, parent, start in given_lines]
    flat = View(sort=sort, is_reversed=is_reversed, text=text)
    tree = arrange(lines, replace(flat, is_tree=True))
    found = {each.line.row.key for each in arrange(lines, flat)}
    assert {each.line.row.key for each in tree if not each.is_frame} == found
    keys = [each.line.row.key for each in tree]
    assert len(keys) == len(set(keys))
