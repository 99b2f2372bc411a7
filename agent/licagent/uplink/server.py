# SPDX-License-Identifier: Apache-2.0
"""The way out: carries bytes, looks up names, listens, and reads the clock, for root alone.

It has a network and no rights (licagent-uplink.service). It never sees what it carries: TLS ends
in the daemon. What it is told of the clock it cannot use to give anybody more: see
`licagent.daemon.outside`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from licagent.uplink.client import MESSAGE_MAX_BYTES

_log: Final = logging.getLogger(__name__)

_CONNECT_S: Final = 10.0
_CHUNK_BYTES: Final = 256 * 1024
_CARRIED_MAX: Final = 64
"""Connections at once; the daemon needs three to each of two servers."""
_LINGER_S: Final = 5.0
"""What is left of a connection once one side has ended it."""
_STALLED_S: Final = 60.0
"""A side that takes nothing at all for so long is gone; keepalive finds it sooner (RFC 9113)."""
_NOT_IN_TIME: Final = "no connection in time"
_UCRED: Final = struct.Struct("iII")

ClockReader = Callable[[], tuple[bool, int, int] | None]
"""Whether it is synchronised, its greatest and its estimated error in us; None: not told."""


class Carrier:
    """Answers at a listening SOCK_SEQPACKET socket until it is closed."""

    def __init__(self, listener: socket.socket, clock: ClockReader) -> None:
        self._listener = listener
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._carrying: set[asyncio.Task[None]] = set()  # of those, one for each connection

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; ends what is carried."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        loop.add_reader(self._listener.fileno(), self._accept)
        try:
            await stop.wait()
        finally:
            loop.remove_reader(self._listener.fileno())
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        try:
            asked, _address = self._listener.accept()
        except OSError:
            return  # whoever asked went away
        _pid, uid, _gid = _UCRED.unpack(
            asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        if uid not in (0, os.getuid()):
            asked.close()
            return
        asked.setblocking(False)
        self._begin(self._answer(asked))

    def _begin(self, work: Any, *also_in: set[asyncio.Task[None]]) -> None:
        """Start it, and hold it until it ends: the loop itself does not."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        for held in (self._tasks, *also_in):
            held.add(task)
            task.add_done_callback(held.discard)

    async def _answer(self, asked: socket.socket) -> None:
        """One question on one connection; `carry` keeps it, to say on it what fails."""
        with asked:
            message, fds = await _received(asked)
            with contextlib.ExitStack() as held:
                passed = [held.enter_context(socket.socket(fileno=fd)) for fd in fds]
                try:
                    question = json.loads(message)
                    match question["op"]:
                        case "carry" if len(passed) == 1:
                            await self._carry_for(asked, passed[0], str(question["server"]))
                        case "resolve":
                            found = await _addresses(str(question["server"]))
                            _say(asked, {"addresses": found})
                        case "clock":
                            _say(asked, self._clock_now())
                        case "listen":
                            place = (str(question["host"]), int(question["port"]))
                            with await _listening(*place) as listener:
                                _say(asked, {}, listener.fileno())
                        case other:
                            _say(asked, {"error": f"unknown question {other!r}"})
                except (OSError, ValueError, KeyError, TypeError) as error:
                    _say(asked, {"error": str(error) or type(error).__name__})

    async def _carry_for(self, asked: socket.socket, listener: socket.socket, server: str) -> None:
        """Carry what comes at `listener` to `server`, until the daemon closes `asked`."""

        def failed(words: str) -> None:
            _log.warning("%s: %s", server, words)
            _say(asked, {"failure": words})

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await _carried(reader, writer, server)
            except OSError as error:  # also what took too long
                # Not asyncio's own words, which name a call: the system's, as other errors have.
                failed(os.strerror(error.errno) if error.errno else str(error) or _NOT_IN_TIME)
            finally:
                writer.transport.abort()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self._carrying) >= _CARRIED_MAX:
                failed(f"more than {_CARRIED_MAX} connections at once")
                writer.transport.abort()
                return
            self._begin(carry(reader, writer), self._carrying)

        carrying = await asyncio.start_unix_server(begin, sock=listener.dup(), limit=_CHUNK_BYTES)
        async with carrying:
            await _closed(asked)

    def _clock_now(self) -> Mapping[str, object]:
        """Read between two readings of the distance of the clocks: a step in between shows."""
        before = _wall_offset_ns()
        found = self._clock()
        if found is None:
            return {"synchronised": None}
        return {
            "synchronised": found[0] and abs(_wall_offset_ns() - before) < 1_000_000,
            "max_error_us": found[1],
            "estimated_error_us": found[2],
            "wall_offset_ns": before,
        }


def _wall_offset_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def _received(asked: socket.socket) -> tuple[bytes, list[int]]:
    await _readable(asked)
    message, fds, _flags, _address = socket.recv_fds(asked, MESSAGE_MAX_BYTES, 4)
    return message, list(fds)


async def _closed(asked: socket.socket) -> None:
    while True:
        await _readable(asked)
        try:
            if not asked.recv(MESSAGE_MAX_BYTES):
                return
        except BlockingIOError:
            continue
        except OSError:
            return


async def _readable(asked: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        loop.remove_reader(asked.fileno())
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(asked.fileno(), tell)
    try:
        await ready
    finally:
        if asked.fileno() >= 0:
            loop.remove_reader(asked.fileno())


def _say(asked: socket.socket, answer: Mapping[str, object], *fds: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked went away, or reads nothing any more
        socket.send_fds(asked, [json.dumps(answer).encode()[:MESSAGE_MAX_BYTES]], list(fds))


async def _addresses(server: str) -> list[tuple[str, int]]:
    host, port = _split(server)
    try:
        rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({(str(place[0]).partition("%")[0], port) for *_rest, place in rows})


async def _listening(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    rows = await loop.getaddrinfo(
        host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _name, place = rows[0]
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def _split(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


async def _carried(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: str) -> None:
    """Connect, and carry both ways until both sides have ended, or one has and some time is over.

    Raises OSError where there is no connection.
    """
    host, port = _split(server)
    async with asyncio.timeout(_CONNECT_S):
        their_reader, their_writer = await asyncio.open_connection(
            host, port, limit=_CHUNK_BYTES, happy_eyeballs_delay=0.25
        )
    try:
        await _both(_pump(reader, their_writer), _pump(their_reader, writer))
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # one side was cut off: so is the other
    finally:
        their_writer.transport.abort()


async def _both(*works: Any) -> None:
    """Both of them; once one has ended the other has `_LINGER_S`, once one failed, nothing."""
    tasks: list[asyncio.Task[None]] = [asyncio.ensure_future(work) for work in works]
    try:
        ended, going_on = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        if going_on:
            # A server that says nothing would otherwise keep the place of a client that is gone.
            ended, _late = await asyncio.wait(going_on, timeout=_LINGER_S)
            for task in ended:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        limit = asyncio.timeout(_STALLED_S)
        try:
            async with limit:
                await writer.drain()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ConnectionAbortedError("it takes nothing any more") from error
    writer.write_eof()
