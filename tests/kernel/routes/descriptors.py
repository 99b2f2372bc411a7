# SPDX-License-Identifier: Apache-2.0
"""Routes by other ways to put bytes into a connected socket."""

from __future__ import annotations

import os
import socket
import tempfile
import threading

from tests.kernel.routes import calls
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import route


def send_dup(context: Context, sock: socket.socket, payload: bytes) -> None:
    """write(2) to a duplicate of the descriptor."""
    with context.at("send"):
        duplicate = os.dup(sock.fileno())
        try:
            os.write(duplicate, payload)
        finally:
            os.close(duplicate)


def send_vector(context: Context, sock: socket.socket, payload: bytes) -> None:
    """writev(2)."""
    with context.at("send"):
        os.writev(sock.fileno(), [payload[:4], payload[4:]])


def send_file(context: Context, sock: socket.socket, payload: bytes) -> None:
    """sendfile(2) from a file."""
    with tempfile.TemporaryFile() as file:
        file.write(payload)
        file.flush()
        with context.at("send"):
            os.sendfile(sock.fileno(), file.fileno(), 0, len(payload))


def send_splice(context: Context, sock: socket.socket, payload: bytes) -> None:
    """splice(2) from a pipe."""
    reader, writer = os.pipe()
    try:
        os.write(writer, payload)
        with context.at("send"):
            os.splice(reader, sock.fileno(), len(payload))
    finally:
        os.close(reader)
        os.close(writer)


def send_zerocopy(context: Context, sock: socket.socket, payload: bytes) -> None:
    """send(2) with MSG_ZEROCOPY."""
    with context.at("option"):
        sock.setsockopt(socket.SOL_SOCKET, calls.SO_ZEROCOPY, 1)
    with context.at("send"):
        sock.send(payload, calls.MSG_ZEROCOPY)


def send_urgent(context: Context, sock: socket.socket, payload: bytes) -> None:
    """send(2), its last byte out of band."""
    with context.at("send"):
        sock.send(payload)
        sock.send(b"!", socket.MSG_OOB)


def send_thread(context: Context, sock: socket.socket, payload: bytes) -> None:
    """send(2) by another thread than the one that connected."""
    failed: list[OSError] = []

    def work() -> None:
        try:
            sock.sendall(payload)
        except OSError as error:
            failed.append(error)

    with context.at("send"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]


SENDERS = {
    "dup": send_dup,
    "writev": send_vector,
    "sendfile": send_file,
    "splice": send_splice,
    "zerocopy": send_zerocopy,
    "urgent": send_urgent,
    "thread": send_thread,
}
"""By name; `opened` walks them a second time on a socket that is open already."""


def _register(name: str) -> None:
    def program(context: Context) -> None:
        with context.tcp() as sock:
            context.connect(sock)
            SENDERS[name](context, sock, context.token)
            context.echo(sock)

    program.__doc__ = f"connect(2), then: {SENDERS[name].__doc__}"
    route("tcp4", name=f"send_{name}4")(program)


for _name in SENDERS:
    _register(_name)
