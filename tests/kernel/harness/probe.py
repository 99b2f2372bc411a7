# SPDX-License-Identifier: Apache-2.0
"""Callers from outside the enforced tree, for programs that offer a port."""

from __future__ import annotations

import select
import socket
import time
from types import TracebackType
from typing import Self


class Caller:
    """Some sockets that call one local port; `kind` is tcp4, tcp6, udp4 or udp6."""

    def __init__(self, kind: str, port: int, callers: int = 1) -> None:
        six = kind.endswith("6")
        self._target = ("::1" if six else "127.0.0.1", port)
        self._stream = kind.startswith("tcp")
        family = socket.AF_INET6 if six else socket.AF_INET
        shape = socket.SOCK_STREAM if self._stream else socket.SOCK_DGRAM
        self._sockets = [socket.socket(family, shape) for _ in range(callers)]
        for sock in self._sockets:
            sock.setblocking(False)
            if self._stream:
                sock.connect_ex(self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sock in self._sockets:
            sock.close()

    def call(self, payload: bytes, limit_s: float) -> bool:
        """Send `payload` from every socket; did an echo come within `limit_s`?

        Stops at the first echo.
        """
        limit = time.monotonic() + limit_s
        silent, asked = set(self._sockets), set[socket.socket]()
        while (silent or asked) and (left := limit - time.monotonic()) > 0:
            readable, writable, _ = select.select(asked, silent, [], left)
            for sock in writable:
                silent.discard(sock)
                if self._send(sock, payload):
                    asked.add(sock)
            for sock in readable:
                asked.discard(sock)
                if payload in self._receive(sock):
                    return True
        return False

    def _send(self, sock: socket.socket, payload: bytes) -> bool:
        try:
            if self._stream:
                sock.send(payload)
            else:
                sock.sendto(payload, self._target)
        except OSError:  # the connection was refused: no answer will come
            return False
        return True

    @staticmethod
    def _receive(sock: socket.socket) -> bytes:
        try:
            return sock.recv(65536)
        except OSError:  # reset
            return b""
