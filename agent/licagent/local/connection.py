# SPDX-License-Identifier: Apache-2.0
"""One client of the local API: its requests, their replies, and what it may cost.

Every limit here answers one way a client can be hostile:

| a client that                          | meets                                              |
|----------------------------------------|----------------------------------------------------|
| connects and says nothing, or a byte a | `request_timeout_s` for a whole request, counted   |
| second                                 | from the connection or the last reply              |
| sends a line without end               | `MAX_REQUEST_BYTES`, then an error and the end     |
| sends bad, deep or mistyped JSON       | an error; after bad framing also the end           |
| never reads its replies                | `write_timeout_s` on a bounded buffer, then abort  |
| connects again and again               | `max_clients`, `max_clients_per_uid`, and seats    |
|                                        | kept for root                                      |
| floods with requests                   | one at a time, a yield after each, and a rate      |
|                                        | (`requests_per_s`) unless it is root               |
| is not allowed                         | SO_PEERCRED, before the first byte is read         |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from licagent.local.errors import ErrorCode, LocalError
from licagent.local.methods import Method, Params, check_params
from licagent.local.peer import Peer
from licagent.local.wire import MAX_REQUEST_BYTES, SCHEMA_VERSION, Request, decode_request, encode

Handler = Callable[[Params, Peer], Awaitable[Mapping[str, object]]]
StreamHandler = Callable[[Params, Peer], AsyncIterator[Mapping[str, object]]]

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all of them, may cost. The table above says why each is there."""

    max_clients: int = 64
    max_clients_per_uid: int = 8  # root excepted
    clients_kept_for_root: int = 16
    request_timeout_s: float = 30.0
    write_timeout_s: float = 10.0
    write_buffer_bytes: int = 256 * 1024
    requests_per_s: float = 50.0  # of one connection, root excepted
    burst: int = 50


class Cut(Exception):
    """The connection is to be aborted; `limit` is the name it is counted under."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class Connection:
    """One client: read a request, answer it, again."""

    def __init__(
        self,
        limits: Limits,
        find: Callable[[Request, Peer], tuple[Method, Handler | StreamHandler]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: Peer,
    ) -> None:
        """`find` is to find the handler of a request, or to raise LocalError."""
        self._find = find
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._limits = limits
        self._tokens = float(self._limits.burst)
        self._filled_at = asyncio.get_running_loop().time()

    async def serve(self) -> None:
        """Serve until the client closes. Cut or ConnectionError otherwise."""
        while True:
            line = await self._read_line()
            if not line:
                return
            await self._pace()
            try:
                request = decode_request(line)
            except LocalError as error:
                # Whoever sends no protocol has nothing more to say that could be trusted.
                await self._send({"id": None, "error": error.as_object()})
                return
            if not await self._answer(request):
                return
            await asyncio.sleep(0)  # replies that never wait must not keep the loop

    async def _read_line(self) -> bytes:
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                return await self._reader.readuntil(b"\n")
        except TimeoutError as error:
            raise Cut("request_timeout") from error
        except asyncio.IncompleteReadError:
            return b""
        except asyncio.LimitOverrunError:
            too_long = LocalError(
                ErrorCode.PROTOCOL,
                f"request longer than {MAX_REQUEST_BYTES} bytes",
                "send less at once",
            )
            await self._send({"id": None, "error": too_long.as_object()})
            return b""

    async def _pace(self) -> None:
        if self._peer.uid == 0:
            return
        now = asyncio.get_running_loop().time()
        earned = (now - self._filled_at) * self._limits.requests_per_s
        self._tokens = min(float(self._limits.burst), self._tokens + earned)
        self._filled_at = now
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._limits.requests_per_s)

    async def _answer(self, request: Request) -> bool:
        """Answer one request; False when the connection has served its purpose."""
        try:
            method, handler = self._find(request, self._peer)
            params = check_params(method, request.params)
            if method.stream:
                await self._stream(request, handler(params, self._peer))  # type: ignore[arg-type]
                return False
            result = await handler(params, self._peer)  # type: ignore[misc]
            versioned = {"schema_version": SCHEMA_VERSION, **result}
            reply = encode({"id": request.id, "result": versioned})
        except LocalError as error:
            reply = encode({"id": request.id, "error": error.as_object()})
        except (ConnectionError, Cut):
            raise
        except Exception:  # noqa: BLE001 - one bad handler must not end the daemon
            _log.exception("local method failed", extra={"fields": {"method": request.method}})
            internal = LocalError(
                ErrorCode.INTERNAL,
                f"{request.method} failed inside the daemon",
                "the daemon's log has the details: journalctl -u licagent",
            )
            reply = encode({"id": request.id, "error": internal.as_object()})
        await self._send_bytes(reply)
        return True

    async def _stream(self, request: Request, items: AsyncIterator[Mapping[str, object]]) -> None:
        """Send items. A stream takes the connection: what the client sends or closes ends it."""
        sending = asyncio.ensure_future(self._send_items(request, items))
        leaving = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send_items(
        self, request: Request, items: AsyncIterator[Mapping[str, object]]
    ) -> None:
        try:
            async for item in items:
                await self._send({"id": request.id, "item": item})
                await asyncio.sleep(0)
            await self._send({"id": request.id, "end": True})
        finally:
            # An async generator is closed here and not by the garbage collector, so that its
            # subscription ends with the connection.
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    async def _send(self, message: Mapping[str, object]) -> None:
        await self._send_bytes(encode(message))

    async def _send_bytes(self, data: bytes) -> None:
        self._writer.write(data)
        try:
            async with asyncio.timeout(self._limits.write_timeout_s):
                await self._writer.drain()
        except TimeoutError as error:
            raise Cut("write_timeout") from error
