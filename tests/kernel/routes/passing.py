# SPDX-License-Identifier: Apache-2.0
"""Routes by a socket of somebody else's: passed over SCM_RIGHTS, or taken by pidfd_getfd."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from tests.kernel.routes import calls
from tests.kernel.routes.base import PATIENCE_S, Context
from tests.kernel.routes.registry import route

KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def hold(context: Context) -> None:
    """Helper: make (and connect, or listen on) a socket, and hand it to whoever asks for it."""
    kind = KINDS[context.options["kind"]]
    with context.make(socket.AF_INET, kind) as sock:
        if context.options.get("connected") == "1":
            context.connect(sock)
        if context.options.get("listening") == "1":
            with context.at("bind"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(context.target)
                sock.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            name = f"licagent-route-{os.getpid()}"
            door.bind(f"\0{name}")
            door.listen()
            door.settimeout(PATIENCE_S)
            context.tell("held", pid=os.getpid(), fd=sock.fileno(), door=name)
            if context.options.get("via") == "scm":
                visitor, _ = door.accept()
                with visitor:
                    socket.send_fds(visitor, [b"s"], [sock.fileno()])
            context.wait("release")


def _receive(context: Context, kind: str, *, connected: bool, via: str) -> socket.socket:
    """Ask the harness for a holder and get its socket."""
    answer: dict[str, Any] = context.wait("holder", kind=kind, connected=connected, via=via)
    with context.at("receive"):
        if via == "scm":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                door.settimeout(PATIENCE_S)
                door.connect(f"\0{answer['door']}")
                _, descriptors, _, _ = socket.recv_fds(door, 1, 1)
            if not descriptors:  # an LSM refused it: the kernel leaves it out of the message
                raise PermissionError("the descriptor did not arrive")
            descriptor = descriptors[0]
        else:
            descriptor = calls.pidfd_getfd(int(answer["pid"]), int(answer["fd"]))
    got = socket.socket(fileno=descriptor)
    got.settimeout(context.patience_s)
    return got


def _use(context: Context, kind: str, *, connected: bool, via: str) -> None:
    with _receive(context, kind, connected=connected, via=via) as sock:
        if not connected:
            context.connect(sock)
        context.exchange(sock)


@route("tcp4", needs=("holder",), open_as="SCM_RIGHTS")
def scm_connected_tcp4(context: Context) -> None:
    """A connected TCP socket of another process arrives over SCM_RIGHTS; send on it."""
    _use(context, "tcp", connected=True, via="scm")


@route("udp4", needs=("holder",), open_as="SCM_RIGHTS")
def scm_connected_udp4(context: Context) -> None:
    """A connected UDP socket of another process arrives over SCM_RIGHTS; send on it."""
    _use(context, "udp", connected=True, via="scm")


@route("tcp4", needs=("holder",))
def scm_made_tcp4(context: Context) -> None:
    """A TCP socket that another process made arrives over SCM_RIGHTS; connect it here."""
    _use(context, "tcp", connected=False, via="scm")


@route("udp4", needs=("holder",))
def scm_made_udp4(context: Context) -> None:
    """A UDP socket that another process made arrives over SCM_RIGHTS; sendto(2) here."""
    with _receive(context, "udp", connected=False, via="scm") as sock:
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@route("tcp4", needs=("holder",))
def scm_reconnected_tcp4(context: Context) -> None:
    """A connected TCP socket arrives, is disconnected (AF_UNSPEC), and connected again here."""
    with _receive(context, "tcp", connected=True, via="scm") as sock:
        with context.at("disconnect"):
            calls.disconnect(sock)
        context.connect(sock)
        context.exchange(sock)


@route("tcp4", needs=("holder",), open_as="pidfd_getfd")
def pidfd_connected_tcp4(context: Context) -> None:
    """A connected TCP socket is taken out of another process by pidfd_getfd(2)."""
    _use(context, "tcp", connected=True, via="pidfd")


@route("udp4", needs=("holder",), open_as="pidfd_getfd")
def pidfd_connected_udp4(context: Context) -> None:
    """A connected UDP socket is taken out of another process by pidfd_getfd(2)."""
    _use(context, "udp", connected=True, via="pidfd")


@route("tcp4", needs=("holder",))
def pidfd_made_tcp4(context: Context) -> None:
    """A TCP socket that another process made is taken by pidfd_getfd(2); connect it here."""
    _use(context, "tcp", connected=False, via="pidfd")
