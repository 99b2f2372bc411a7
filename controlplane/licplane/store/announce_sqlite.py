# SPDX-License-Identifier: Apache-2.0
"""Announcements of a SQLite database: datagrams to the sockets in notify/, beside the file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import Connection

from licplane.store.announce import Bell, Subscription

POLL_S: Final = 0.25
_FOLDER: Final = "notify"
_POKE: Final = b"\x01"


class SqliteAnnouncer:
    """For the database at `path`."""

    def __init__(self, path: Path, *, poll_s: float = POLL_S) -> None:
        self._path = path
        self._folder = path.parent / _FOLDER
        self._poll_s = poll_s

    def before_commit(self, connection: Connection) -> None:
        """Nothing: a poke before the commit would send listeners to look too early."""

    def announce(self) -> None:
        """Send a datagram to each socket; those that nobody holds any more are removed."""
        try:
            names = [name for name in os.listdir(self._folder) if name.endswith(".sock")]
        except OSError:
            return  # nobody ever listened, or we may not: polling finds the change
        if not names:
            return
        with contextlib.suppress(OSError), self._opened() as folder, _datagrams() as sender:
            for name in names:
                self._poke(sender, folder, name)

    def _poke(self, sender: socket.socket, folder: str, name: str) -> None:
        try:
            sender.sendto(_POKE, f"{folder}/{name}")
        except OSError as error:
            # Refused: its process has ended. Full (EAGAIN): it has pokes enough to wake up.
            if error.errno == errno.ECONNREFUSED:
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()

    async def listen(self) -> Subscription:
        """A bell that the sockets ring, and the polling of the head row."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(6)}.sock"
        receiver = _datagrams()
        try:
            with self._opened() as folder:
                receiver.bind(f"{folder}/{name}")
            watch = _Watch(self._path)
        except BaseException:
            receiver.close()
            (self._folder / name).unlink(missing_ok=True)
            raise
        return _SqliteSubscription(receiver, self._folder / name, watch, self._poll_s)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[str]:
        """The folder by its descriptor: a socket's address holds 107 bytes, a path 4,095."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)


class _Watch:
    """Looks whether the head moved. Reads one page of the file: cheap enough for the loop."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw", uri=True, timeout=0, isolation_level=None
        )
        self._version: object = None
        self._head: object = None
        self.moved()

    def moved(self) -> bool:
        """Whether it moved since the last look; a database that cannot be read has not."""
        try:
            version = self._row("PRAGMA data_version")
            if version == self._version:
                return False
            head = self._row("SELECT revision, fleet_revision FROM head")
        except sqlite3.Error:
            return False
        moved = head != self._head
        self._version, self._head = version, head
        return moved

    def _row(self, statement: str) -> object:
        with contextlib.closing(self._connection.execute(statement)) as cursor:
            return cursor.fetchone()

    def close(self) -> None:
        self._connection.close()


class _SqliteSubscription:
    def __init__(self, receiver: socket.socket, path: Path, watch: _Watch, poll_s: float) -> None:
        self._receiver = receiver
        self._path = path
        self._watch = watch
        self._bell = Bell()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(receiver, self._poked)
        self._poll = self._loop.create_task(self._look(poll_s))

    def _poked(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._receiver.recv(16):
                pass
        self._bell.ring()

    async def _look(self, poll_s: float) -> None:
        while True:
            await asyncio.sleep(poll_s)
            if self._watch.moved():
                self._bell.ring()

    async def wait(self) -> None:
        """Until the database may have changed since the last wait."""
        await self._bell.wait()

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        self._poll.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._poll
        if self._receiver.fileno() >= 0:
            self._loop.remove_reader(self._receiver)
            self._receiver.close()
        self._watch.close()
        self._path.unlink(missing_ok=True)


def _datagrams() -> socket.socket:
    return socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
