# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the local API.

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

Python's json and asyncio are all it imports: no click, no rich (the daemon's memory).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from licagent.local.errors import ErrorCode, LocalError
from licagent.local.methods import METHODS, Method, check_params
from licagent.local.peer import Peer, peer_of
from licagent.local.wire import MAX_REQUEST_BYTES, SCHEMA_VERSION, Request, decode_request, encode

if TYPE_CHECKING:
    from pathlib import Path

Params = Mapping[str, Any]
"""Checked parameters: every one of the method's, with its default if it was not given."""

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


class LocalServer:
    """A newline-delimited JSON server on a UNIX stream socket.

    Register handlers with `method` and `stream`, then `await start()`; `await close()` ends it.
    A handler raises LocalError for what the client should know; anything else is logged and
    answered with INTERNAL.
    """

    def __init__(
        self,
        path: Path,
        *,
        readers_gid: int | None,
        limits: Limits | None = None,
        mode: int | None = None,
    ) -> None:
        """`readers_gid` may read beside root (`peer.readers_gid()`); `mode` is for tests."""
        self._path = path
        self._readers_gid = readers_gid
        self._limits = limits or Limits()
        self._mode = mode if mode is not None else (0o600 if readers_gid is None else 0o660)
        self._handlers: dict[str, tuple[Method, Handler]] = {}
        self._streams: dict[str, tuple[Method, StreamHandler]] = {}
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], Peer] = {}
        self._identity: tuple[int, int] | None = None
        self.refused: Counter[str] = Counter()
        """Connections ended by a limit, by its name; for status and metrics."""

    def method(self, name: str, handler: Handler, *, write: bool | None = None) -> None:
        """Answer `name` with the result of `handler`. `write` must agree with METHODS."""
        self._handlers[name] = (self._known(name, write=write, stream=False), handler)

    def stream(self, name: str, handler: StreamHandler, *, write: bool | None = None) -> None:
        """Answer `name` with the items of `handler`, until they or the connection end."""
        self._streams[name] = (self._known(name, write=write, stream=True), handler)

    async def start(self) -> None:
        """Listen. OSError EADDRINUSE if another process answers on the path.

        The socket is made under a temporary name, given its owner and mode, and renamed: it is
        never there with wider permissions, and a dead one is replaced without a gap.
        """
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if _is_answered(self._path):
            raise OSError(errno.EADDRINUSE, "another daemon answers on this socket", self._path)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            before = os.umask(0o177)
            try:
                listener.bind(os.fspath(fresh))
            finally:
                os.umask(before)
            if self._readers_gid is not None:
                os.chown(fresh, -1, self._readers_gid)
            fresh.chmod(self._mode)
            # Only then may anybody connect.
            listener.listen(128)
            fresh.rename(self._path)
            status = self._path.lstat()
            self._identity = (status.st_dev, status.st_ino)
            self._server = await asyncio.start_unix_server(
                self._accept, sock=listener, limit=MAX_REQUEST_BYTES
            )
        except BaseException:
            listener.close()
            fresh.unlink(missing_ok=True)
            raise

    async def close(self) -> None:
        """Stop listening, end every client, remove the socket if it is still ours."""
        if self._server is not None:
            self._server.close()
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        with contextlib.suppress(OSError):
            status = self._path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self._path.unlink()

    @property
    def clients(self) -> int:
        """Connections open now."""
        return len(self._clients)

    @staticmethod
    def _known(name: str, *, write: bool | None, stream: bool) -> Method:
        method = METHODS[name]
        if write is not None and method.write != write:
            raise ValueError(f"{name}: METHODS says write={method.write}")
        if method.stream != stream:
            raise ValueError(f"{name}: METHODS says stream={method.stream}")
        return method

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = _this_task()
        transport = writer.transport
        transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        try:
            peer = peer_of(transport.get_extra_info("socket"))
            self._admit(peer)
        except LocalError as error:
            self.refused[str(error.code)] += 1
            writer.write(encode({"id": None, "error": error.as_object()}))
            writer.close()
            return
        except OSError:
            transport.abort()
            return
        self._clients[task] = peer
        try:
            await _Connection(self, reader, writer, peer).serve()
        except _Cut as cut:
            self.refused[cut.limit] += 1
            _log.info("local client cut", extra={"fields": {"pid": peer.pid, "limit": cut.limit}})
            transport.abort()
        except (ConnectionError, asyncio.CancelledError):
            # Cancelled only by close(): ending quietly here is what it waits for.
            transport.abort()
        finally:
            self._clients.pop(task, None)
            writer.close()

    def _admit(self, peer: Peer) -> None:
        if not peer.may_read(self._readers_gid):
            raise LocalError(
                ErrorCode.PERMISSION,
                f"uid {peer.uid} may not ask this daemon",
                "ask as root, or as a member of the group licagent",
            )
        limits = self._limits
        busy = LocalError(ErrorCode.BUSY, "too many clients", "try again in a moment")
        if len(self._clients) >= limits.max_clients:
            raise busy
        if peer.uid == 0:
            return
        others = Counter(client.uid for client in self._clients.values() if client.uid != 0)
        if others[peer.uid] >= limits.max_clients_per_uid:
            raise busy
        if others.total() >= limits.max_clients - limits.clients_kept_for_root:
            raise busy

    def find(self, request: Request, peer: Peer) -> tuple[Method, Handler | StreamHandler]:
        """The handler of a request, its permission checked. LocalError otherwise."""
        found = self._handlers.get(request.method) or self._streams.get(request.method)
        if found is None:
            raise LocalError(
                ErrorCode.UNKNOWN_METHOD,
                f"no method {request.method[:64]!r}",
                "is the daemon older than the command? see `licagent status`",
            )
        if found[0].write and not peer.may_write():
            raise LocalError(
                ErrorCode.PERMISSION,
                f"uid {peer.uid} may not call {request.method}: it changes things",
                "run it as root",
            )
        return found

    @property
    def limits(self) -> Limits:
        """The limits this server holds its clients to."""
        return self._limits


class _Cut(Exception):
    """The connection is to be aborted; `limit` is the name it is counted under."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class _Connection:
    """One client: read a request, answer it, again."""

    def __init__(
        self,
        server: LocalServer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: Peer,
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._limits = server.limits
        self._tokens = float(self._limits.burst)
        self._filled_at = asyncio.get_running_loop().time()

    async def serve(self) -> None:
        """Serve until the client closes. _Cut or ConnectionError otherwise."""
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
            raise _Cut("request_timeout") from error
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
            method, handler = self._server.find(request, self._peer)
            params = check_params(method, request.params)
            if method.stream:
                await self._stream(request, handler(params, self._peer))  # type: ignore[arg-type]
                return False
            result = await handler(params, self._peer)  # type: ignore[misc]
            versioned = {"schema_version": SCHEMA_VERSION, **result}
            reply = encode({"id": request.id, "result": versioned})
        except LocalError as error:
            reply = encode({"id": request.id, "error": error.as_object()})
        except (ConnectionError, _Cut):
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
            raise _Cut("write_timeout") from error


def _this_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a connection is served outside a task")
    return task


def _is_answered(path: Path) -> bool:
    """Whether a live process listens on `path`. OSError if something else stands there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "something that is no socket is in the way", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its backlog is full: it lives, however badly
        except OSError:
            return False
        return True
