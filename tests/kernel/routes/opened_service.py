# SPDX-License-Identifier: Apache-2.0
"""Routes on a port that is offered already: who still gets an answer after something changed."""

from __future__ import annotations

import contextlib

from tests.kernel.routes.base import Context
from tests.kernel.routes.opened import midway
from tests.kernel.routes.registry import route
from tests.kernel.routes.service import serve_datagram, serve_stream


@route("tcp4", direction="in", rounds=2)
def open_serve_tcp4(context: Context) -> None:
    """A listener that goes on listening."""
    with context.tcp() as sock:
        with context.at("bind"):
            sock.bind(context.target)
            sock.listen()
        serve_stream(context, sock, "tcp4")
        midway(context)
        serve_stream(context, sock, "tcp4")


@route("udp4", direction="in", rounds=2)
def open_serve_udp4(context: Context) -> None:
    """A UDP server that goes on serving."""
    with context.udp() as sock:
        with context.at("bind"):
            sock.bind(context.target)
        serve_datagram(context, sock, "udp4")
        midway(context)
        serve_datagram(context, sock, "udp4")


@route("tcp4", direction="in", rounds=2)
def open_serve_rebind4(context: Context) -> None:
    """A listener whose second bind(2), to a free port, fails: it listens as before."""
    with context.tcp() as sock:
        with context.at("bind"):
            sock.bind(context.target)
            sock.listen()
        serve_stream(context, sock, "tcp4")
        with contextlib.suppress(OSError):
            sock.bind((context.address, context.decoy_port))
        midway(context)
        serve_stream(context, sock, "tcp4")


@route("udp4", direction="in", rounds=2)
def open_serve_decoy_between4(context: Context) -> None:
    """A UDP server that sent to a free server meanwhile."""
    with context.udp() as sock:
        with context.at("bind"):
            sock.bind(context.target)
        serve_datagram(context, sock, "udp4")
        with context.at("decoy"):
            sock.sendto(b"decoy", context.decoy)
        context.echo(sock, b"decoy")
        midway(context)
        serve_datagram(context, sock, "udp4")


@route("tcp4", direction="in", rounds=2)
def open_accepted4(context: Context) -> None:
    """A connection that was accepted already."""
    with context.tcp() as listener:
        with context.at("bind"):
            listener.bind(context.target)
            listener.listen()
        context.tell("serve", kind="tcp4", port=context.port, calls=1, keep=True)
        with context.at("accept"):
            caller, _ = listener.accept()
        with caller:
            for last in (False, True):
                caller.settimeout(context.patience_s)
                with context.at("serve"):
                    caller.sendall(caller.recv(65536))
                if not last:
                    midway(context)
                    context.tell("again")
