# SPDX-License-Identifier: Apache-2.0
"""The small HTTP server of a worker, over real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from licplane.api import probes
from licplane.api.probes import Page, serve_pages


async def test_who_never_reads_the_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than the kernel's buffers take are due to a client that reads none of them."""
    monkeypatch.setattr(probes, "_REQUEST_TIMEOUT_S", 0.3)
    handling: asyncio.Queue[asyncio.Task[object]] = asyncio.Queue()

    async def long(_accept: str) -> Page:
        task = asyncio.current_task()
        assert task is not None
        handling.put_nowait(task)
        return Page(b"x" * (32 << 20))

    server = await serve_pages({"/metrics": long}, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        handler = await asyncio.wait_for(handling.get(), 20)
        _, running = await asyncio.wait({handler}, timeout=10)
        handler.cancel()
        assert not running, "its handler, its page and its descriptor stay for ever"
    server.close()
    await server.wait_closed()
