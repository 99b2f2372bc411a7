# SPDX-License-Identifier: Apache-2.0
"""How listeners hear of changes: by the poke, and by polling when it is lost."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:  # pytest loads it as a plugin, and would find it loaded already
    from tests.support.postgres import Postgres

from licplane.store.announce import Announcer, Subscription
from licplane.store.announce_postgres import CHANNEL, PostgresAnnouncer
from licplane.store.announce_sqlite import SqliteAnnouncer
from licplane.store.catalog_model import Kind, ObjectDraft, Scope
from licplane.store.database import Store
from licplane.store.host_model import Host, HostPresence, HostStatus

pytest_plugins = ["tests.support.postgres"]

WAIT_S = 60.0
NEVER_S = 3600.0


def change(store: Store, name: str = "a") -> int:
    with store.transaction() as transaction:
        transaction.put_object(ObjectDraft(Kind.RESOURCE, name, Scope(), os.urandom(8)))
        return transaction.head().revision


def enrol(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.put_host(Host("h", "h", HostStatus.ACTIVE, {}, "", bytes(32), 1, 1))


def announcer(store: Store, poll_s: float) -> Announcer:
    """With polling of its own: never, or fast."""
    if store.folder is None:
        return PostgresAnnouncer(store._engine, poll_s=poll_s)
    return SqliteAnnouncer(store.folder / "licplane.db", poll_s=poll_s)


@asynccontextmanager
async def listening(store: Store, poll_s: float) -> AsyncIterator[Subscription]:
    subscription = await announcer(store, poll_s).listen()
    try:
        yield subscription
    finally:
        await subscription.close()
        await subscription.close()


async def rings(subscription: Subscription) -> bool:
    async with asyncio.timeout(WAIT_S):
        await subscription.wait()
    return True


async def is_quiet(subscription: Subscription) -> bool:
    """Whether it has not rung yet: nothing is waited for."""
    task = asyncio.ensure_future(subscription.wait())
    await asyncio.sleep(0)
    task.cancel()
    return not task.done()


async def test_a_commit_pokes_all_listeners(store: Store) -> None:
    async with listening(store, NEVER_S) as one, listening(store, NEVER_S) as two:
        for work in (change, enrol, change):
            await asyncio.to_thread(work, store)
            assert await rings(one)
            assert await rings(two)


async def test_the_change_is_there_when_it_rings(store: Store) -> None:
    async with listening(store, NEVER_S) as subscription:
        for at in range(20):
            made = asyncio.create_task(asyncio.to_thread(change, store, f"n{at}"))
            await rings(subscription)
            with store.reading() as reader:
                assert reader.head().revision == at + 1
            await made


async def test_rings_coalesce(store: Store) -> None:
    async with listening(store, NEVER_S) as subscription:
        for _ in range(50):
            change(store)
        store.announcer.announce()
        assert await rings(subscription)
    with store.reading() as reader:
        assert reader.head().revision == 50


async def test_a_lost_poke_is_found_by_polling(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(store, 0.01) as subscription:
        for name in ("announce", "before_commit"):
            monkeypatch.setattr(type(store.announcer), name, lambda *unused: None)
        await asyncio.to_thread(change, store)
        assert await rings(subscription)
        await asyncio.to_thread(enrol, store)
        assert await rings(subscription)


async def test_what_does_not_concern_hosts_rings_nobody(store: Store) -> None:
    enrol(store)
    async with listening(store, NEVER_S) as subscription:
        with store.recording() as recorder:
            recorder.put_presence([HostPresence("h", 1)])
        with store.transaction() as transaction:
            transaction.put_setting("a", b"")
        with store.transaction(dry_run=True) as transaction:
            transaction.put_object(ObjectDraft(Kind.RESOURCE, "a", Scope(), b""))
        assert await is_quiet(subscription)
        change(store)
        assert await rings(subscription)


def test_one_notification_for_each_change_and_none_for_the_rest(postgres_url: str) -> None:
    plain = postgres_url.replace("+psycopg", "")
    with Store.open(postgres_url) as store, psycopg.connect(plain, autocommit=True) as listener:
        store.upgrade()
        listener.execute(f"LISTEN {CHANNEL}")
        enrol(store)
        change(store)
        with store.recording() as recorder:
            recorder.put_presence([HostPresence("h", 1)])
        with store.transaction() as transaction:
            transaction.put_setting("a", b"")
        with store.transaction(dry_run=True) as transaction:
            transaction.put_object(ObjectDraft(Kind.RESOURCE, "b", Scope(), b""))
        with store.transaction() as transaction:
            for name in "cde":
                transaction.put_object(ObjectDraft(Kind.RESOURCE, name, Scope(), b""))
        listener.execute("SELECT 1")  # what was committed before comes with the answer
        assert len(list(listener.notifies(timeout=0))) == 3


async def test_another_process_pokes(store: Store, url: str) -> None:
    program = (
        "import sys\n"
        "from licplane.store.database import Store\n"
        "from licplane.store.catalog_model import Kind, ObjectDraft, Scope\n"
        "with Store.open(sys.argv[1]) as store, store.transaction() as transaction:\n"
        "    transaction.put_object(ObjectDraft(Kind.RESOURCE, 'p', Scope(), b''))\n"
    )
    async with listening(store, NEVER_S) as subscription:
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, url], check=True)
        assert await rings(subscription)


def test_announcing_to_nobody(store: Store) -> None:
    store.announcer.announce()
    change(store)


async def test_sockets_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.in_folder(tmp_path / ("long" * 40)) as store:  # longer than a socket's address
        assert store.folder is not None
        notify = store.folder / "notify"
        async with listening(store, NEVER_S) as subscription:
            assert len(list(notify.iterdir())) == 1
            assert notify.stat().st_mode & 0o777 == 0o700
            stale = notify / "1-dead.sock"
            dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            monkeypatch.chdir(notify)  # its path is too long, too
            dead.bind(stale.name)
            dead.close()
            change(store)
            assert await rings(subscription)
            assert not stale.exists()
        assert list(notify.iterdir()) == []


async def test_a_listener_that_never_reads_stops_nobody(tmp_path: Path) -> None:
    with Store.in_folder(tmp_path / "s") as store:
        assert store.folder is not None
        deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            (store.folder / "notify").mkdir(mode=0o700)
            deaf.bind(str(store.folder / "notify" / "2-deaf.sock"))
            async with listening(store, NEVER_S) as subscription:
                for _ in range(3000):  # more than a socket's queue holds
                    store.announcer.announce()
                assert await rings(subscription)
        finally:
            deaf.close()


async def test_a_database_that_restarts_rings_when_it_is_back(
    postgres: Postgres, postgres_url: str
) -> None:
    with Store.open(postgres_url) as store:
        store.upgrade()
        async with listening(store, 0.05) as subscription:
            await asyncio.to_thread(postgres.restart)
            assert await rings(subscription)
            await asyncio.to_thread(change, store)
            assert await rings(subscription)
