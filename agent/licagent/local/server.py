# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the local API: its socket, its methods, and who is let in.

What a client may cost, and how it is answered, is in licagent.local.connection.
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
from typing import TYPE_CHECKING, Final

from licagent.local.connection import Connection, Cut, Handler, Limits, StreamHandler
from licagent.local.errors import ErrorCode, LocalError
from licagent.local.methods import METHODS, Method
from licagent.local.peer import Peer, peer_of
from licagent.local.wire import MAX_REQUEST_BYTES, Request, encode

if TYPE_CHECKING:
    from pathlib import Path

_log: Final = logging.getLogger(__name__)


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
            await Connection(self._limits, self._find, reader, writer, peer).serve()
        except Cut as cut:
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

    def _find(self, request: Request, peer: Peer) -> tuple[Method, Handler | StreamHandler]:
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
