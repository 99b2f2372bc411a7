# SPDX-License-Identifier: Apache-2.0
"""Several processes and threads at once, and processes that are killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from licplane.errors import ExitCode, PlaneError
from licplane.store.catalog_model import Kind, ObjectDraft, Scope
from licplane.store.database import Store
from licplane.store.host_model import Host, HostCounters, HostPresence, HostStatus
from licplane.store.identity_model import JoinToken

if TYPE_CHECKING:
    from tests.support.postgres import Postgres

pytest_plugins = ["tests.support.postgres"]

PROGRAM = Path(__file__).parent / "crashing.py"
PROCESSES = 2
EACH = 10


def beside(what: str, url: str, count: int = EACH) -> list[str]:
    """Run the program in several processes that begin together; their lines."""
    command = [sys.executable, "-W", "error", str(PROGRAM), what, url, str(count)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    try:
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        lines = []
        with ThreadPoolExecutor(PROCESSES) as pool:
            for output, _ in pool.map(lambda one: one.communicate("\n", timeout=120), running):
                lines += output.split()
        assert [one.returncode for one in running] == [0] * PROCESSES
        return lines
    finally:
        for one in running:
            one.kill()
            one.communicate()


def together(work: Callable[[], bool], count: int = 8) -> int:
    """Run `work` in several threads that begin together; how often it said True."""
    start = threading.Barrier(count)

    def run() -> bool:
        start.wait()
        return work()

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(lambda _: run(), range(count)))


def host(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.put_host(Host("h", "h", HostStatus.ACTIVE, {}, "", bytes(32), 1, 1))


def test_processes_take_each_number_once(store: Store, url: str) -> None:
    numbers = sorted(map(int, beside("numbers", url)))
    assert numbers == list(range(1, PROCESSES * EACH + 1))


def test_processes_count_the_last_use_once(store: Store, url: str) -> None:
    with store.transaction() as transaction:
        transaction.put_join_token(JoinToken("t", bytes(32), {}, EACH + 1, 2**62, "x", 1))
    assert beside("token", url).count("1") == EACH + 1
    with store.reading() as reader:
        assert [one.uses for one in reader.join_tokens()] == [EACH + 1]


def test_changes_are_seen_in_order_and_without_gaps(store: Store, url: str) -> None:
    # The module is a program; here it is asked what its own work came to.
    made = subprocess.run(
        [sys.executable, "-c", _PREPARE, str(PROGRAM.parent), url], check=False, timeout=60
    )
    assert made.returncode == 0
    seen: list[int] = []
    stop = threading.Event()

    def follow() -> None:
        while not stop.is_set() or not seen or seen[-1] < PROCESSES * EACH:
            with store.reading() as reader:
                for row in reader.changes_since(seen[-1] if seen else 0) or ():
                    if not seen or row.revision != seen[-1]:
                        seen.append(row.revision)
                assert (seen[-1] if seen else 0) == reader.head().revision
            stop.wait(0.002)  # leave the writers some of the machine

    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow)
        try:
            beside("change", url)
        finally:
            stop.set()
        follower.result(timeout=60)
    assert seen == list(range(1, PROCESSES * EACH + 1))
    done = subprocess.run(
        [sys.executable, "-c", _DONE, str(PROGRAM.parent), url],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert int(done.stdout) == PROCESSES * EACH


_PREPARE = """
import sys; sys.path.insert(0, sys.argv[1])
import crashing
with crashing.Store.open(sys.argv[2]) as store: crashing.prepare(store)
"""
_LEAVE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT * FROM head").close()
connection.close()
"""
_DONE = """
import sys; sys.path.insert(0, sys.argv[1])
import crashing
with crashing.Store.open(sys.argv[2]) as store: print(crashing.steps_done(store))
"""


def test_a_kill_at_any_statement_leaves_nothing_half_done(store: Store, url: str) -> None:
    subprocess.run(
        [sys.executable, "-c", _PREPARE, str(PROGRAM.parent), url], check=True, timeout=60
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), "killed", url],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=150,
    )
    assert int(done.stdout) > 15  # statements at which it was killed


def test_one_of_many_swaps_a_counter(store: Store) -> None:
    host(store)
    first = HostCounters("h", b"0" * 32)

    def begin() -> bool:
        with store.recording() as recorder:
            return recorder.swap_counters(None, first)

    def swap() -> bool:
        mine = HostCounters("h", first.current, threading.current_thread().name.encode())
        with store.recording() as recorder:
            return recorder.swap_counters(first, mine)

    assert together(begin) == 1
    assert together(swap) == 1


def test_one_of_many_spends_a_digest(store: Store) -> None:
    def spend() -> bool:
        with store.recording() as recorder:
            return recorder.spend(bytes(32), 1)

    assert together(spend) == 1


def test_writers_of_presence_do_not_lock_each_other_out(store: Store) -> None:
    names = [f"h{at}" for at in range(40)]
    with store.transaction() as transaction:
        for at, name in enumerate(names):
            transaction.put_host(
                Host(name, name, HostStatus.ACTIVE, {}, "", bytes([at] * 32), 1, 1)
            )

    def write() -> bool:
        for at in range(5):
            rows = [HostPresence(name, at) for name in (names if at % 2 else reversed(names))]
            with store.recording() as recorder:
                recorder.put_presence(rows)
        return True

    assert together(write) == 8


def test_what_a_host_sends_does_not_wait_for_a_change_of_it(postgres_url: str) -> None:
    with Store.open(postgres_url, lock_wait_s=0.01) as store:
        store.upgrade()
        host(store)
        with store.transaction() as transaction:
            known = transaction.host("h")
            assert known is not None
            transaction.put_host(replace(known, labels={"org": "acme"}))
            with store.recording() as recorder:
                recorder.put_presence([HostPresence("h", 1)])
        with store.recording() as recorder:
            recorder.put_presence([HostPresence("h", 2)])
            with store.transaction() as transaction:
                transaction.put_host(replace(known, labels={}))


def test_a_first_opening_by_many(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    beside("open", str(folder), 1)
    with Store.in_folder(folder) as store:
        store.check()
        with store.transaction() as transaction:
            assert transaction.take_number() == PROCESSES + 1


def test_a_lock_that_is_not_had_is_said(url: str) -> None:
    with Store.open(url, lock_wait_s=0.01) as store, Store.open(url, lock_wait_s=0.01) as other:
        store.upgrade()
        with store.transaction() as transaction:
            transaction.put_setting("a", b"")
            for busy in (other, store):
                with pytest.raises(PlaneError) as refused, busy.transaction():
                    pass
                assert refused.value.code is ExitCode.BUSY
        with other.transaction() as transaction:
            assert transaction.setting("a") == b""


def test_a_server_that_crashes_within_a_transaction(postgres: Postgres, postgres_url: str) -> None:
    def work(store: Store) -> None:
        with store.transaction() as transaction:
            transaction.put_object(ObjectDraft(Kind.RESOURCE, "a", Scope(), b""))
            postgres.restart()
            transaction.put_setting("a", b"")

    with Store.open(postgres_url) as store:
        store.upgrade()
        with pytest.raises(PlaneError) as refused:
            work(store)
        assert refused.value.code is ExitCode.BUSY
        with store.transaction() as transaction:  # the pool has found out by itself
            assert transaction.object(Kind.RESOURCE, "a") is None
            assert transaction.next_revision() == 1


def test_a_new_connection_takes_no_lock_from_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with Store.in_folder(folder) as store, store.transaction() as transaction:
        transaction.put_setting("a", b"")
        with store.reading(), store.reading():  # connections made while others are open
            pass
        # A process that believes to be the last one deletes the journal as it leaves.
        database = str(folder / "licplane.db")
        subprocess.run([sys.executable, "-c", _LEAVE, database], check=True, timeout=60)
        assert (folder / "licplane.db-wal").exists()
