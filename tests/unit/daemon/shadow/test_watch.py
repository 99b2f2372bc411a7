# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from licagent.daemon.control.managed import Managed
from licagent.daemon.shadow.watch import ShadowWatch, WatchBook, digests_of, match_of
from licagent.domain.policy import parse_policy
from licagent.domain.policy_model import Resource
from licagent.domain.tables import ResourceEntry, Rule, RuleKey, Tables
from licagent.store.statedir import StateDir

T = TypeVar("T")


def resource(destinations: str, name: str = "db") -> Resource:
    text = f'[[resource]]\nname = "{name}"\nkind = "network"\ndestinations = [{destinations}]\n'
    return parse_policy([("test.toml", text)]).resources[0]


ONE = '{ cidr = "10.0.0.0/24", ports = ["1", "5-9"], protocol = "tcp" }'
TWO = '{ cidr = "10.0.1.0/24" }'


def rule(number: int, uid: int, *licenses: int) -> Rule:
    return Rule(number, RuleKey(1, uid=uid), licenses, "b", (), "")


def compiled(*rules: Rule, places: str = ONE) -> Any:
    found = resource(places)
    tables = Tables(rules=rules, resources=(ResourceEntry(1, "db", "network", False, ""),))
    return SimpleNamespace(
        local=SimpleNamespace(resources=(found,)), managed=Managed(), tables=tables
    )


def test_a_match_is_what_is_covered_in_whatever_order() -> None:
    assert match_of(resource(f"{ONE}, {TWO}")) == match_of(resource(f"{TWO}, {ONE}"))
    others = (TWO, ONE.replace("5-9", "5-8"), ONE.replace("tcp", "udp"), ONE.replace("24", "25"))
    assert len({match_of(resource(each)) for each in (ONE, *others)}) == 5


def test_rules_are_the_same_in_whatever_order() -> None:
    a, b = rule(1, 5, 1), rule(2, 6, 2)
    assert digests_of(compiled(a, b)) == digests_of(compiled(b, a))
    assert (
        len({digests_of(compiled(*each))["db"] for each in ((a, b), (a,), (rule(1, 5, 2),))}) == 3
    )


def test_what_is_kept_survives_and_begins_anew_where_it_must(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        book = WatchBook(state)
        assert book.follow({"db": ("m", "r"), "web": ("m", "r")}, "1")
        book.add(10)
        book.save()
    with StateDir(tmp_path / "state") as state:
        book = WatchBook(state)
        assert not book.follow({"db": ("m", "r"), "web": ("m", "r")}, "2")
        book.add(1)
        assert book.follow({"db": ("m", "other")}, "3")
        kept = book.resources["db"]
        assert (kept.watched_s, kept.since, kept.rules_since) == (11, "1", "3")
        book.follow({"db": ("other", "other"), "web": ("m", "r")}, "4")
        assert {name: each.watched_s for name, each in book.resources.items()} == {
            "db": 0,
            "web": 0,
        }
        book.save()
    damaged = tmp_path / "state" / "shadow-watch.json"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with StateDir(tmp_path / "state") as state:
        assert WatchBook(state).resources == {}


def test_time_counts_while_somebody_looks(tmp_path: Path) -> None:
    now_s = 100.0
    policy = compiled(rule(1, 5, 1))

    async def on_kernel(action: Callable[[], T]) -> T:
        return action()

    async def watch_it() -> None:
        nonlocal now_s
        with StateDir(tmp_path / "state") as state:
            in_force = SimpleNamespace(compiled=policy, loaded_at=0.0)
            agent: Any = SimpleNamespace(state=state, policy=in_force)
            watch = ShadowWatch(agent, on_kernel, clock=lambda: now_s)
            assert (await watch.look())["db"].watched_s == 0
            now_s += 5
            assert (await watch.look())["db"].watched_s == 5
            now_s += 3600  # it hung, or was stopped
            assert (await watch.look())["db"].watched_s == 5
            now_s += 5
            in_force.compiled = compiled(rule(1, 5, 1), places=TWO)
            assert (await watch.look())["db"].watched_s == 0
            running = asyncio.create_task(watch.run())
            await asyncio.sleep(0)
            now_s += 7
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        with StateDir(tmp_path / "state") as state:
            assert WatchBook(state).resources["db"].watched_s == 7

    asyncio.run(watch_it())


@pytest.mark.parametrize("kept", [{}, {"resources": []}, {"resources": {"db": {"match": "m"}}}])
def test_what_is_damaged_is_watched_anew(kept: dict[str, Any], tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        state.write_document("shadow-watch", "licagent.shadow-watch/1", kept)
        assert not WatchBook(state).resources


class Stalled:
    """A state folder whose disk takes nothing until `go`."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self.go = threading.Event()
        self.begun = threading.Event()
        self.at_once = self.most_at_once = 0

    def read_document(self, *given: Any) -> Any:
        return self._state.read_document(*given)

    def write_document(self, *given: Any) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        assert self.go.wait(10), "nobody could go on meanwhile"
        self._state.write_document(*given)
        self.at_once -= 1

    async def until_begun(self) -> None:
        async with asyncio.timeout(20):
            while not self.begun.is_set():  # noqa: ASYNC110 - a thread sets it
                await asyncio.sleep(0.001)


async def on_loop(action: Callable[[], T]) -> T:
    return action()


async def test_the_loop_goes_on_while_the_disk_stands_still(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        disk = Stalled(state)
        in_force = SimpleNamespace(compiled=compiled(rule(1, 5, 1)), loaded_at=0.0)
        agent: Any = SimpleNamespace(state=disk, policy=in_force)
        watch = ShadowWatch(agent, on_loop, clock=lambda: 100.0)
        looking = asyncio.create_task(watch.look())
        await disk.until_begun()
        disk.go.set()
        assert "db" in await looking
        assert "db" in WatchBook(state).resources


@pytest.mark.parametrize("who", ["the watch", "a client"])
async def test_the_last_save_follows_the_one_that_was_cancelled(tmp_path: Path, who: str) -> None:
    now_s = 100.0
    with StateDir(tmp_path / "state") as state:
        disk = Stalled(state)
        in_force = SimpleNamespace(compiled=compiled(rule(1, 5, 1)), loaded_at=0.0)
        agent: Any = SimpleNamespace(state=disk, policy=in_force)
        watch = ShadowWatch(agent, on_loop, clock=lambda: now_s)
        jobs = (watch.look(), watch.run()) if who == "a client" else (watch.run(),)
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            await disk.until_begun()
            now_s += 7
            for task in tasks:
                task.cancel()
            for _turn in range(20):
                await asyncio.sleep(0)
            assert not any(task.done() for task in tasks), "it was not saved yet"
        finally:
            disk.go.set()
        assert all(
            isinstance(each, asyncio.CancelledError)
            for each in await asyncio.gather(*tasks, return_exceptions=True)
        )
        assert disk.most_at_once == 1
        assert WatchBook(state).resources["db"].watched_s == 7
