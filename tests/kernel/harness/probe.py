# SPDX-License-Identifier: Apache-2.0
"""Callers from outside the enforced tree, for programs that offer a port."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import Final

ANSWER_LIMIT_S: Final = 0.6


def call(kind: str, port: int, payload: bytes, *, callers: int = 1) -> int:
    """Send `payload` to a local port from `callers` sockets; stops at the first echo.

    Answers how many echoes came: 0 after ANSWER_LIMIT_S.
    """
    host = "::1" if kind.endswith("6") else "127.0.0.1"
    family = socket.AF_INET6 if kind.endswith("6") else socket.AF_INET
    stream = kind.startswith("tcp")
    limit = time.monotonic() + ANSWER_LIMIT_S
    with contextlib.ExitStack() as stack:
        waiting: set[socket.socket] = set()  # TCP sockets that are still connecting
        talking: set[socket.socket] = set()
        for _ in range(callers):
            sock = stack.enter_context(
                socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
            )
            sock.setblocking(False)
            if stream:
                sock.connect_ex((host, port))
                waiting.add(sock)
            else:
                sock.sendto(payload, (host, port))
                talking.add(sock)
        while (waiting or talking) and (left := limit - time.monotonic()) > 0:
            readable, writable, _ = select.select(talking, waiting, [], left)
            for sock in writable:
                waiting.discard(sock)
                with contextlib.suppress(OSError):  # refused: it has nothing to say
                    sock.send(payload)
                    talking.add(sock)
            for sock in readable:
                talking.discard(sock)
                with contextlib.suppress(OSError):
                    if payload in sock.recv(65536):
                        return 1
    return 0
