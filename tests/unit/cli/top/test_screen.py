# SPDX-License-Identifier: Apache-2.0
"""The screen by textual's pilot: what stands there after which keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from licagent.cli.top.arrange import View
from licagent.cli.top.poll import Poll
from licagent.cli.top.screen import Top
from licagent.cli.top.table import Rows, Titles
from licagent.local.errors import ErrorCode, LocalError


class Screen:
    """Keys in, text out."""

    def __init__(self, app: Top, pilot: Any) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def lines(self) -> list[str]:
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip).rstrip() for strip in strips]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    async def press(self, *keys: str) -> str:
        await self.pilot.press(*keys)
        await self.pilot.pause()
        return self.text

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await self.pilot.pause(0.02)

    def pids(self) -> list[int]:
        return [each.line.row.pid for each in self.app.query_one(Rows).shown]

    @property
    def chosen(self) -> int:
        found = self.app.query_one(Rows).chosen
        assert found is not None
        return found.line.row.pid


@asynccontextmanager
async def screen(
    host: Any, view: View | None = None, *, size: tuple[int, int] = (80, 24), **more: Any
) -> AsyncIterator[Screen]:
    app = Top(Poll(host.ask), view or View(), delay_s=0.05, **more)
    async with app.run_test(size=size) as pilot:
        found = Screen(app, pilot)
        await found.until(lambda: bool(app.sample and app.sample.interval_ns))
        await pilot.pause()
        yield found


async def test_the_table_stands_below_its_summary_and_above_the_keys(host):
    async with screen(host) as top:
        lines = top.lines
        assert lines[0].startswith("licagent top  staging-1  12:00:05Z  by process")
        assert "cpu 150.0% of 200%" in lines[1]
        assert lines[2] == "2 processes, 1 ended; 1.0% cpu unattributed; ~ estimated"
        assert (
            lines[3] == "    PID USER      CPU%  ~MEM    IN   OUT  READ  WRITE LICENSE    COMMAND"
        )
        assert lines[4] == "   4300 alice    100.0 64.0M     0     0 10.0M      0 -          worker"
        assert lines[5] == "   4242 orders    50.0     0     0  2.0K     0      0 acme-order orders"
        assert lines[6].endswith("<curl>")
        assert lines[23].startswith(
            "F1Help F3Search F4Filter F5Tree F6SortBy TabUnits aTotals F10Quit"
        )
        assert len(lines) == 24


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (20, 5), (250, 60), (1, 1)])
async def test_any_size_of_terminal(host, size):
    async with screen(host, size=size) as top:
        await top.press("h", "escape", "enter", "escape", "f6", "escape", "t", "tab", "a")
        await top.pilot.resize_terminal(80, 24)
        await top.until(lambda: "by unit" in top.text)


async def test_tab_goes_round_processes_units_and_licenses(host):
    async with screen(host) as top:
        await top.press("tab")
        await top.until(lambda: "orders.service" in top.text)
        assert "3.0G" in top.text
        assert "(no unit)" in top.text
        await top.press("tab")
        await top.until(lambda: "by license" in top.text)
        assert host.asked[-1]["by"] == "license"
        await top.press("tab")
        await top.until(lambda: "worker" in top.text)
        await top.press("shift+tab")
        await top.until(lambda: "by license" in top.text)


async def test_htops_sort_keys(host):
    async with screen(host) as top:
        for key, first in (("N", 4242), ("I", 5120), ("M", 4300), ("T", 4300), ("P", 4300)):
            await top.press(key)
            assert top.pids()[0] == first, key
        await top.press("f6", "home", "enter")
        assert top.app.view.sort == "pid"
        await top.press("greater_than_sign", "escape")
        assert top.app.view.sort == "pid"


async def test_a_click_on_a_title_sorts_and_a_second_one_turns_round(host):
    async with screen(host) as top:
        await top.pilot.click(Titles, offset=(4, 0))
        await top.pilot.pause()
        assert top.pids() == [4242, 4300, 5120]
        await top.pilot.click(Titles, offset=(4, 0))
        await top.pilot.pause()
        assert top.pids() == [5120, 4300, 4242]


async def test_a_filter_is_typed_kept_and_cleared(host):
    async with screen(host) as top:
        await top.press("f4", "o", "r", "d")
        assert top.pids() == [4242]
        await top.press("q")  # a letter here, and no end
        assert top.pids() == []
        assert "nothing to show" in top.text
        await top.press("backspace", "enter")
        assert top.pids() == [4242]
        assert "filter ord" in top.lines[-1]
        await top.press("escape")
        assert len(top.pids()) == 3
        assert top.lines[-1].startswith("F1Help")
        await top.press("backslash", "x", "escape")
        assert len(top.pids()) == 3


async def test_a_search_moves_and_leaves_the_rows(host):
    async with screen(host) as top:
        await top.press("slash", "c", "u", "r")
        assert (top.chosen, len(top.pids())) == (5120, 3)
        await top.press("escape")
        assert len(top.pids()) == 3


async def test_f3_once_more_goes_on_to_the_next(host):
    async with screen(host, View(sort="pid")) as top:
        await top.press("f3", "e", "r")  # orders, worker
        assert top.chosen == 4242
        await top.press("f3")
        assert top.chosen == 4300
        await top.press("f3")
        assert top.chosen == 5120  # curl.service
        await top.press("f3")
        assert top.chosen == 4242


async def test_digits_go_to_a_pid(host):
    async with screen(host) as top:
        await top.press("5", "1")
        assert top.chosen == 5120
        assert "pid 51" in top.lines[-1]
        await top.press("up", "4", "2")
        assert top.chosen == 4242


async def test_the_tree_folds(host):
    async with screen(host) as top:
        await top.press("f5")
        assert "└─ worker" in top.text
        assert "F5List" in top.lines[-1]
        await top.press("home", "space")
        assert top.pids() == [4242, 5120] or top.pids() == [5120, 4242]
        assert "+ orders" in top.text
        await top.press("plus")
        assert len(top.pids()) == 3
        await top.press("asterisk")
        assert len(top.pids()) == 2
        await top.press("asterisk", "t")
        assert "└─" not in top.text


async def test_totals_wire_exited_kernel_threads_and_users(host):
    host.process(9, "kworker", executable="[kworker/0:1]", user="root")
    async with screen(host) as top:
        assert "CPU%" in top.text
        await top.press("a")
        assert "TIME" in top.lines[3]
        await top.press("a", "w")
        assert "4.0K" in top.text
        await top.press("x")
        assert 5120 not in top.pids()
        await top.press("x", "K")
        assert 9 not in top.pids()
        assert 5120 in top.pids()
        await top.press("K", "u", "down", "down", "enter")  # all users, alice, orders
        assert top.pids() == [4242]
        assert "user orders" in top.lines[-1]


async def test_enter_shows_all_figures_exactly(host):
    async with screen(host, View(sort="pid")) as top:
        await top.press("p")  # so that figures stand still
        text = await top.press("enter")
        assert "4242 orders, started" in text
        assert "acme-orders-2026" in text
        assert "exact sum_exec_runtime" in text
        cpu_ns = next(line for line in text.splitlines() if "cpu_ns" in line)
        assert "00,000" in cpu_ns
        assert "licagent explain 4242" in text
        assert "licagent top" in await top.press("escape")


async def test_help_fits_80_by_24(host):
    async with screen(host) as top:
        text = await top.press("f1")
        assert "choose a row" in text
        assert "licagent explain PID" in text
        assert "by process" in await top.press("q")


async def test_a_pause_holds_what_is_shown(host):
    async with screen(host) as top:
        await top.press("p")
        sample, asked = top.app.sample, len(host.asked)
        assert "PAUSED" in top.lines[-1]
        await top.until(lambda: len(host.asked) > asked + 3)
        assert top.app.sample is sample
        await top.press("p")
        await top.until(lambda: top.app.sample is not sample)


async def test_the_cursor_stays_with_its_line_or_follows_its_row(host):
    async with screen(host, View(sort="pid")) as top:
        await top.press("down")
        assert top.chosen == 4300
        await top.press("I")
        assert top.chosen == 4300  # of three lines, the middle one
        await top.press("home")
        assert top.chosen == 5120
        await top.press("F", "I")
        assert top.chosen == 5120
        assert "following" in top.lines[-1]


async def test_ten_thousand_rows_scroll(host):
    for pid in range(10_000, 20_000):
        host.process(pid, f"p{pid}")
    async with screen(host, View(sort="pid")) as top:
        assert top.chosen == 4242
        text = await top.press("end")
        assert "p19999" in text
        text = await top.press("pageup")
        assert top.chosen == 19_999 - 18
        text = await top.press("home")
        assert " 4242 " in text
        await top.press("down")
        assert top.chosen == 4300


async def test_a_daemon_that_goes_is_said_and_its_return_begins_anew(host):
    async with screen(host) as top:
        host.error = LocalError(ErrorCode.NOT_RUNNING, "no daemon answers on /x")
        await top.until(lambda: "NOT CURRENT: no daemon answers on /x" in top.text)
        assert "worker" in top.text  # the last figures stay
        host.error = None
        host.more = {"started_ns": 77}  # another daemon: totals began anew
        await top.until(lambda: "NOT CURRENT" not in top.text)
        await top.until(lambda: bool(top.app.sample and top.app.sample.snapshot.run == ("one", 77)))


async def test_it_ends_after_so_many_tables(host):
    app = Top(Poll(host.ask), View(), delay_s=0.01, iterations=2)
    async with app.run_test() as pilot:
        async with asyncio.timeout(60):
            while app.is_running and app.return_code is None:
                await pilot.pause(0.02)
    assert app.return_code == 0


async def test_metering_that_is_off_is_said(host):
    host.more = {"metering": "off", "rows": []}
    async with screen(host) as top:
        assert "METERING OFF" in top.lines[0]
        assert "nothing to show" in top.text
