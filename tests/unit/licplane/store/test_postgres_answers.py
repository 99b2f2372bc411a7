# SPDX-License-Identifier: Apache-2.0
"""Servers that fall silent, and servers that do not tell which one they are.

A server process is stopped (SIGSTOP) here, as of one that hangs: its kernel goes on acknowledging.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text

if TYPE_CHECKING:  # pytest loads it as a plugin, and would find it loaded already
    from tests.support.postgres import Postgres

from licplane.store import announce_postgres, postgres_answers
from licplane.store.catalog_model import Kind, ObjectDraft, Scope
from licplane.store.database import Store
from licplane.store.engine import make_engine, parse_url
from licplane.store.history import History, Lineage, Unnamed
from licplane.store.postgres_servers import Servers

pytest_plugins = ["tests.support.postgres"]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A server process that hangs, and three seconds' patience with it and with all others: they
    do answer, but may be slow."""
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(postgres_answers, "ANSWER_S", 3.0)
            yield
    finally:
        os.kill(pid, signal.SIGCONT)


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def options(url: str) -> dict[str, int]:
    """What the kernel was told of a connection of ours."""
    engine = make_engine(parse_url(url), pool_size=1)
    try:
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, psycopg.Connection)
            with socket.socket(fileno=os.dup(raw.fileno())) as same:
                tcp = socket.IPPROTO_TCP
                return {
                    "probes": same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    "idle": same.getsockopt(tcp, socket.TCP_KEEPIDLE),
                    "timeout": same.getsockopt(tcp, socket.TCP_USER_TIMEOUT),
                }
    finally:
        engine.dispose()


def test_a_peer_that_is_gone_is_given_up_after_seconds(postgres_url: str) -> None:
    assert options(postgres_url) == {"probes": 1, "idle": 5, "timeout": 10_000}


def test_what_the_url_says_counts(postgres_url: str) -> None:
    found = options(f"{postgres_url}?tcp_user_timeout=3000&keepalives_idle=77")
    assert found == {"probes": 1, "idle": 77, "timeout": 3_000}


def test_a_connection_to_a_process_that_hangs_is_left(postgres_url: str) -> None:
    engine = make_engine(parse_url(postgres_url), pool_size=1)
    mine = text("SELECT pg_backend_pid()")
    try:
        with engine.connect() as connection:
            hung = int(connection.execute(mine).scalar_one())
        with engine.connect() as connection:
            assert connection.execute(mine).scalar_one() == hung  # one that answers is kept
        with stopped(hung), engine.connect() as connection:
            assert connection.execute(mine).scalar_one() != hung
    finally:
        engine.dispose()


async def test_a_listener_whose_process_hangs_comes_back(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(store: Store) -> None:
        with store.transaction() as transaction:
            transaction.put_object(ObjectDraft(Kind.RESOURCE, "a", Scope(), b""))

    watches: list[announce_postgres._Watch] = []

    class Watch(announce_postgres._Watch):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            watches.append(self)

    monkeypatch.setattr(announce_postgres, "_Watch", Watch)
    with Store.open(postgres_url) as store:
        store.upgrade()
        subscription = await announce_postgres.PostgresAnnouncer(store._engine, poll_s=0.1).listen()
        try:
            connection = watches[0]._connection
            assert connection is not None
            with stopped(connection.info.backend_pid):
                async with asyncio.timeout(60):
                    await subscription.wait()  # it is back
                    await asyncio.to_thread(change, store)
                    await subscription.wait()
            assert connection.closed
        finally:
            await subscription.close()


def asked(url: str) -> History:
    connection, history = Servers(psycopg.connect).connect({"conninfo": plain(url)})
    connection.close()
    return history


def test_a_question_that_failed_is_no_answer(postgres: Postgres, postgres_url: str) -> None:
    """It would let a connection to a primary that was left behind pass for one that hides it."""
    made: list[psycopg.Connection[Any]] = []

    def connect(**arguments: Any) -> psycopg.Connection[Any]:
        connection = psycopg.connect(**arguments)
        made.append(connection)
        with psycopg.connect(plain(postgres_url), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", (connection.info.backend_pid,))
        return connection

    with pytest.raises(psycopg.OperationalError):
        Servers(connect).connect({"conninfo": plain(postgres_url)})
    assert made[0].closed


@contextmanager
def nobody(postgres: Postgres, url: str) -> Iterator[str]:
    """The URL of a user whom the server hides its timeline from."""
    name = sql.Identifier(f"u_{secrets.token_hex(8)}")
    hide = "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC"
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        connection.execute(hide)
    try:
        yield url.replace("postgres@", f"{name.as_string()[1:-1]}@")
    finally:
        postgres.run(sql.SQL("DROP ROLE {}").format(name))


def test_a_server_that_hides_its_timeline_is_known_by_when_it_began(
    postgres: Postgres, postgres_url: str
) -> None:
    assert isinstance(asked(postgres_url), Lineage)
    with nobody(postgres, postgres_url) as url:
        before = asked(url)
        assert isinstance(before, Unnamed)
        assert asked(url) == before
        with psycopg.connect(plain(url)) as connection, pytest.raises(psycopg.Error) as error:
            connection.execute("SELECT * FROM pg_control_system()")
        assert error.value.sqlstate == "42501"
        postgres.restart()
        assert isinstance(asked(url), Unnamed)
        assert asked(url) != before
