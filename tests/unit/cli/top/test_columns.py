# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from licagent.cli.top.arrange import View, arrange
from licagent.cli.top.batch import as_object, as_text
from licagent.cli.top.columns import cells, fit, place, titles
from licagent.cli.top.poll import Poll
from licagent.cli.words import compact, cpu_time, safe
from licagent.local.usage_shapes import TOP_BY

ESTIMATED = dict.fromkeys(
    ["memory_bytes", "stored_bytes", "write_bytes", "read_bytes", "cpu_ns", "rx_payload_bytes"],
    "estimated",
)


@pytest.mark.parametrize("by", TOP_BY)
@pytest.mark.parametrize("totals", [False, True])
def test_80_columns_hold_what_one_comes_for(by, totals):
    view = View(by=by, totals=totals)
    line = " ".join(titles(place(view, ESTIMATED, 80)))
    assert len(line) == 80
    wanted = {"process": "PID USER LICENSE COMMAND", "unit": "UNIT PROCS ~STORED",
              "license": "LICENSE PROCS ~STORED"}  # fmt: skip
    for title in f"{wanted[by]} ~MEM ~IN OUT ~READ ~WRITE {'~TIME' if totals else '~CPU%'}".split():
        assert title in line.split()


@given(st.integers(1, 300), st.sampled_from(TOP_BY), st.booleans())
def test_lines_are_as_wide_as_the_terminal(width, by, totals):
    placed = place(View(by=by, totals=totals), ESTIMATED, width)
    line = " ".join(titles(placed))
    assert len(line) == width or (len(placed) == 1 and len(line) >= width)


@given(st.text(max_size=30), st.integers(1, 20), st.booleans())
def test_a_text_takes_exactly_its_cells(text, width, is_right):
    assert cell_len(fit(safe(text), width, is_right=is_right)) == width


@given(st.integers(0, 2**80))
def test_amounts_take_five_cells_and_are_near(number):
    text = compact(number)
    assert len(text) <= 5
    factor = 1024 ** (" KMGTPEZY".index(text[-1])) if text[-1].isalpha() else 1
    shown = float(text.rstrip("KMGTPEZY")) * factor
    assert abs(shown - number) <= 0.051 * max(number, 1)


@given(st.integers(0, 10**20))
def test_times_take_seven_cells_until_they_are_years(nanoseconds):
    assert len(cpu_time(nanoseconds)) <= 7 or nanoseconds > 10**17


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00s"), (9.994, "9.99s"), (9.996, "10.0s"), (59.96, "1m00s"), (3599.6, "1h00m"),
     (18_420, "5h07m"), (86_400, "1d00h"), (1e8, "1157d")],
)  # fmt: skip
def test_times_change_their_units_where_they_round(seconds, text):
    assert cpu_time(int(seconds * 1e9)) == text


def test_none_is_not_zero():
    assert compact(None) == cpu_time(None) == "n/a"
    assert compact(0) == "0"


SCREEN = """\
licagent top  staging-1  12:00:05Z  by process  per second
cpu 150.0% of 200%  mem 1.5G of 4.0G  in 0  out 2.0K  read 10.0M  write 0
2 processes, 1 ended; 1.0% cpu unattributed; ~ estimated

    PID USER      CPU%  ~MEM    IN   OUT  READ  WRITE LICENSE    COMMAND
   4300 alice    100.0 64.0M     0     0 10.0M      0 -          worker
   4242 orders    50.0     0     0  2.0K     0      0 acme-order orders
   5120 alice      0.0     0     0     0     0      0 -          <curl>
"""

TREE = """\
    PID USER      CPU%  ~MEM    IN   OUT  READ  WRITE LICENSE    COMMAND
   4242 orders    50.0     0     0  4.0K     0      0 acme-order orders
   4300 alice    100.0 64.0M     0     0 10.0M      0 -          └─ worker
   5120 alice      0.0     0     0     0     0      0 -          <curl>
"""

UNITS = """\
UNIT              PROCS  CPU%  ~MEM    IN   OUT  READ  WRITE  STORED LICENSE
orders.service        2 100.0     0     0     0     0      0    3.0G acme-orders
(no unit)             2   0.0     0     0     0     0   1.0K       0 -
"""


def shown(host, view: View) -> str:
    poll = Poll(host.ask)
    poll.sample(view.by)
    return "".join(f"{line}\n" for line in as_text(poll.sample(view.by), view, width=80))


def test_the_screen_at_80_columns(host):
    assert shown(host, View()) == SCREEN


def test_the_tree_at_80_columns(host):
    text = shown(host, View(is_tree=True, wire=True, sort="pid"))
    assert text.endswith(TREE)
    assert "bytes on the wire" in text


def test_the_units_at_80_columns(host):
    assert shown(host, View(by="unit")).endswith(UNITS)


def test_no_rate_yet_and_not_measured_are_two_things(host):
    host.rows["process"][0]["read_bytes"] = None
    host.growth[4242] = {}
    sample = Poll(host.ask).sample("process")
    view = View(sort="pid")
    first = arrange(sample.lines, view)[0]
    placed = place(view, {}, 80)
    found = dict(
        zip((each.column.name for each in placed), cells(first, view, placed), strict=True)
    )
    assert found["cpu"].strip() == "-"
    assert found["read"].strip() == "n/a"


def test_json_has_whole_numbers_and_null_for_what_is_not_known(host):
    poll = Poll(host.ask)
    poll.sample("process")
    found = json.loads(json.dumps(as_object(poll.sample("process"), View())))
    assert found["interval_ns"] == 10**9
    worker, orders, curl = found["rows"]
    assert worker["rates"]["cpu_ns"] == 10**9
    assert worker["totals"]["read_bytes"] == 20 << 20
    assert worker["levels"] == {"memory_bytes": 64 << 20, "stored_bytes": None}
    assert (orders["license"], worker["license"], worker["exited_ns"]) == (
        "acme-orders-2026",
        None,
        None,
    )
    assert curl["exited_ns"] == 99 * 10**9
    assert found["unattributed"]["rates"]["cpu_ns"] == 10**7
