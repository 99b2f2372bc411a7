# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL servers that fall silent: how long one is waited for.

A machine that lost its power, or its network, says no word. Its kernel acknowledges nothing, and
TCP gives up after some 15 minutes (tcp_retries2); `connect_words` has it give up after seconds. A
server whose processes hang is another matter, for its kernel goes on acknowledging: `answer` bounds
one question to it, and `cut_after` what an asynchronous connection waits for. A statement of ours
that it hangs in is not bounded, for nobody knows how long it may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow
from sqlalchemy import URL

ANSWER_S: Final = 10.0
"""How long a server may take for an answer that costs it nothing."""
_WORDS: Final[dict[str, Any]] = {
    "application_name": "licplane",
    "connect_timeout": 10,
    # Sent and not acknowledged for so many ms; libpq, 34.1.2.
    "tcp_user_timeout": 10_000,
    # While we wait for an answer: nothing of ours is on its way then, so it is asked by probes.
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}

_Connection = psycopg.Connection[Any]


def connect_words(url: URL) -> dict[str, Any]:
    """libpq's parameters for connections of ours, without those that `url` sets itself."""
    return {name: value for name, value in _WORDS.items() if name not in url.query}


class Unanswered(psycopg.OperationalError):
    """What a server said to a question, if anything, was no answer."""

    def __init__(self, words: str, code: str = "") -> None:
        super().__init__(words)
        self.code: Final = code
        """SQLSTATE; "" where the server did not say one."""


def answer(connection: _Connection, query: bytes, within_s: float | None = None) -> PGresult:
    """The rows of a query, as text, on a connection that is in no transaction.

    Raises Unanswered; where the server took longer than `within_s` (ANSWER_S) the connection is
    closed then.
    """
    pgconn = connection.pgconn
    within_s = ANSWER_S if within_s is None else within_s
    end_s = time.monotonic() + within_s
    found: PGresult | None = None
    try:
        pgconn.send_query(query)
        while pgconn.flush():
            _await(connection, select.POLLIN | select.POLLOUT, end_s)
            pgconn.consume_input()
        while True:
            while pgconn.is_busy():
                _await(connection, select.POLLIN, end_s)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                break
            found = result
    except TimeoutError as error:
        connection.close()
        raise Unanswered(f"the database server said nothing for {within_s:g} s") from error
    except psycopg.Error as error:
        raise Unanswered(str(error)) from error
    if found is None or found.status != ExecStatus.TUPLES_OK:
        words = found.get_error_message() if found is not None else "the server said nothing"
        code = found.error_field(DiagnosticField.SQLSTATE) if found is not None else None
        raise Unanswered(words, (code or b"").decode())
    return found


def _await(connection: _Connection, events: int, end_s: float) -> None:
    poll = select.poll()
    poll.register(connection.fileno(), events)
    if not poll.poll(max(0.0, end_s - time.monotonic()) * 1000):
        raise TimeoutError


def ping(connection: _Connection) -> bool:
    """True when the server answers. Raises Unanswered, with the connection closed, when not."""
    try:
        answer(connection, b"SELECT 1")
    except Unanswered:
        connection.close()
        raise
    return True


@contextlib.contextmanager
def cut_after(connection: psycopg.AsyncConnection[TupleRow]) -> Iterator[None]:
    """Whatever waits for this server in the block fails after ANSWER_S, as if it had hung up.

    Cancelling would not do: psycopg asks the server to cancel then, and waits for its answer.
    """
    timer = asyncio.get_running_loop().call_later(ANSWER_S, _cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def _cut(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as same,
    ):
        same.shutdown(socket.SHUT_RDWR)
