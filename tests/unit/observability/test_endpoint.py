# SPDX-License-Identifier: Apache-2.0
"""The small HTTP server of the agent, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from licagent.observability import endpoint
from licagent.observability.endpoint import Page, listen, serve


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async def metrics(accept: str) -> Page:
        return Page(f"accept={accept}\n".encode())

    async def ready(_accept: str) -> Page:
        return Page.words("not ready: no-policy", ok=False)

    server = await serve({"/metrics": metrics, "/-/ready": ready}, listen("127.0.0.1", 0))
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_pages_methods_and_what_is_not_there(port: int) -> None:
    found = await ask(port, b"GET /metrics?x=1 HTTP/1.1\r\naCCept: text/plain\r\nAccept: b\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert found.endswith(b"\r\n\r\naccept=text/plain,b\n")
    headed = await ask(port, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert b"Content-Length: 8\r\n" in headed
    assert headed.endswith(b"\r\n\r\n")
    unready = await ask(port, b"GET /-/ready HTTP/1.1\r\n\r\n")
    assert unready.startswith(b"HTTP/1.1 503 ")
    assert unready.endswith(b"not ready: no-policy\n")
    assert b" 404 " in await ask(port, b"GET /../../etc/passwd HTTP/1.1\r\n\r\n")
    assert b" 405 " in await ask(port, b"DELETE /metrics HTTP/1.1\r\n\r\n")
    for nonsense in (b"GET\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET /metrics SSH-2.0\r\n\r\n"):
        assert b" 400 " in await ask(port, nonsense)


def test_an_address_that_is_taken_is_an_error_and_ipv6_is_an_address() -> None:
    with listen("::1", 0) as first:
        place = first.getsockname()
        assert place[0] == "::1"
        with pytest.raises(OSError, match="in use"):
            listen("::1", place[1])


async def test_a_flood_gets_nothing_and_who_says_nothing_keeps_nobody_out(port: int) -> None:
    assert await ask(port, b"x" * 100_000) == b""
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
    assert b" 200 OK" in await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    first, last = silent[0][0], silent[-1][0]
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(first.read(), 20) == b"", "it had to make room"
    assert not last.at_eof()
    for _reader, writer in silent:
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_who_never_reads_the_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than the kernel's buffers take are due to a client that reads none of them."""
    monkeypatch.setattr(endpoint, "_REQUEST_TIMEOUT_S", 0.3)
    handling: asyncio.Queue[asyncio.Task[object]] = asyncio.Queue()

    async def long(_accept: str) -> Page:
        task = asyncio.current_task()
        assert task is not None
        handling.put_nowait(task)
        return Page(b"x" * (32 << 20))

    server = await serve({"/metrics": long}, listen("127.0.0.1", 0))
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        handler = await asyncio.wait_for(handling.get(), 20)
        _, running = await asyncio.wait({handler}, timeout=10)
        handler.cancel()
        assert not running, "its handler, its page and its descriptor stay for ever"
    server.close()
    await server.wait_closed()
