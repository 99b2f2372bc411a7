# SPDX-License-Identifier: Apache-2.0
"""The real server on a real socket, in a thread of its own, with a small service behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from licagent.local.connection import Limits
from licagent.local.errors import ErrorCode, LocalError
from licagent.local.peer import Peer
from licagent.local.server import LocalServer


class Service:
    """A server, and what it was asked."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.calls: list[tuple[str, Mapping[str, Any], Peer]] = []
        self.streams_ended = threading.Event()
        self._options = options
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._up.wait(10)

    async def _serve(self) -> None:
        self.server = LocalServer(self.path, **self._options)
        for name, write in (
            ("status", False),
            ("explain", False),
            ("license.show", False),
            ("policy.check", False),
            ("license.add", True),
            ("break_glass", True),
        ):
            self.server.method(name, self._handler(name), write=write)
        self.server.stream("events", self._events, write=False)
        await self.server.start()
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._up.set()
        await self._end.wait()
        await self.server.close()

    def _handler(self, name: str) -> Any:
        async def answer(params: Mapping[str, Any], peer: Peer) -> Mapping[str, object]:
            self.calls.append((name, params, peer))
            if params.get("id") == "missing":
                raise LocalError(ErrorCode.NOT_FOUND, "no such license", "list them")
            if params.get("id") == "broken":
                raise RuntimeError("a secret of the daemon")
            if params.get("id") == "large":
                return {"text": "x" * 1_000_000}
            if params.get("id") == "nan":
                return {"value": float("nan")}
            return {"ok": True, "pid": peer.pid, "uid": peer.uid}

        return answer

    async def _events(
        self, params: Mapping[str, Any], peer: Peer
    ) -> AsyncIterator[Mapping[str, object]]:
        try:
            for number in range(params["limit"]):
                yield {"number": number}
            if params["follow"]:
                await asyncio.Event().wait()
        finally:
            self.streams_ended.set()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(10)
        assert not self._thread.is_alive()

    def clients(self) -> int:
        return self.server.clients

    def connect(self) -> Raw:
        return Raw(self.path)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One request on a connection of its own: shows that the server lives."""
        with self.connect() as raw:
            return raw.ask(method, **params)


class Raw:
    """A client that may say anything."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(os.fspath(path))  # blocking: waits while the queue is full
        except BaseException:
            self.socket.close()
            raise
        self.socket.settimeout(20)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> dict[str, Any] | None:
        """The next reply; None when the server closed."""
        while b"\n" not in self._received:
            try:
                chunk = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        message = {"id": 7, "method": method, "params": params}
        self.send(json.dumps(message).encode() + b"\n")
        reply = self.line()
        assert reply is not None
        return reply

    def code(self) -> str | None:
        """The error code of the next reply."""
        reply = self.line()
        return None if reply is None else reply["error"]["code"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def start(*, readers_gid: int | None = None, mode: int | None = None, **limits: Any) -> Service:
        path = tmp_path / "run" / "licagent.sock"
        service = Service(path, readers_gid=readers_gid, mode=mode, limits=Limits(**limits))
        services.append(service)
        return service

    yield start
    for service in services:
        service.stop()


@pytest.fixture
def as_child() -> Callable[..., int]:
    """Run a function in a forked child with other credentials; its exit status is the answer."""

    def run(function: Callable[[], int], *, uid: int, gid: int, groups: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            status = 99
            with contextlib.suppress(BaseException):
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                status = function()
            sys.stderr.flush()
            os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if wanted < 2500:
        pytest.skip("needs 2,500 file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
