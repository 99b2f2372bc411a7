# SPDX-License-Identifier: Apache-2.0
"""The way out as a relay, over real sockets: what it carries ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from licagent.uplink import server
from licagent.uplink.client import Uplink
from licagent.uplink.server import Carrier

_WAIT_S = 20.0


class Silent:
    """A server that takes connections, and then neither reads, writes nor closes."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.taken: list[socket.socket] = []

    async def take(self) -> None:
        """Wait for the next connection."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_WAIT_S):
            self.taken.append((await loop.sock_accept(self.listener))[0])

    def close(self) -> None:
        """Close all."""
        for each in (self.listener, *self.taken):
            each.close()


@pytest.fixture
async def way_out(tmp_path: Path) -> AsyncIterator[Uplink]:
    """A relay that runs, and the daemon's side of it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "uplink"))
    listener.listen()
    stop = asyncio.Event()
    running = asyncio.create_task(Carrier(listener, lambda: None).run(stop))
    made = Uplink(tmp_path / "uplink", tmp_path)
    yield made
    made.close()
    stop.set()
    await asyncio.wait_for(running, _WAIT_S)
    await asyncio.sleep(0.1)  # transports that were aborted close at their loop's next turn
    listener.close()


@pytest.mark.parametrize("sent_bytes", [1, 32 << 20])
async def test_clients_that_are_gone_free_their_places_though_the_server_is_silent(
    way_out: Uplink, monkeypatch: pytest.MonkeyPatch, sent_bytes: int
) -> None:
    """Also where the server's buffers are full of what they sent."""
    monkeypatch.setattr(server, "_LINGER_S", 0.2, raising=False)
    monkeypatch.setattr(server, "_STALLED_S", 0.2, raising=False)
    monkeypatch.setattr(server, "_CARRIED_MAX", 2)
    silent = Silent()
    try:
        path = str(await asyncio.to_thread(way_out.carry, silent.address))
        for _ in range(2):
            _reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"x" * sent_bytes)
            await silent.take()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await writer.drain()
            writer.transport.abort()
        taking = asyncio.create_task(silent.take())
        while True:  # both places are taken for a moment
            _reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"z")
            await asyncio.wait({taking}, timeout=0.2)
            if taking.done():
                break
            writer.transport.abort()
        taking.result()
        received = asyncio.get_running_loop().sock_recv(silent.taken[-1], 1)
        assert await asyncio.wait_for(received, _WAIT_S) == b"z"
        writer.transport.abort()
    finally:
        silent.close()
