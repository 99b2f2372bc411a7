# SPDX-License-Identifier: Apache-2.0
"""Routes by io_uring: the calls are made below the system call layer, or by a kernel thread."""

from __future__ import annotations

import socket

from tests.kernel.routes import calls, uring
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import pair, route


def _made(context: Context, ring: uring.Ring, family: int, kind: int) -> socket.socket:
    with context.at("socket"):
        # fd holds the family, off the type, len the protocol
        descriptor = ring.call(uring.OP_SOCKET, family, offset=kind, length=0)
    sock = socket.socket(fileno=descriptor)
    # a blocking descriptor below; receiving stays bounded by SO_RCVTIMEO
    calls.bound_waits(sock, context.patience_s)
    return sock


def _address(family: int, target: tuple[str, int]) -> bytes:
    make = calls.address6 if family == socket.AF_INET6 else calls.address4
    return make(*target)


def _connect(context: Context, ring: uring.Ring, sock: socket.socket) -> None:
    name = _address(sock.family, context.target)
    with context.at("connect"):
        ring.call(uring.OP_CONNECT, sock.fileno(), address=ring.buffer(name), offset=len(name))


def _send(context: Context, ring: uring.Ring, sock: socket.socket, opcode: int) -> None:
    with context.at("send"):
        ring.call(
            opcode,
            sock.fileno(),
            address=ring.buffer(context.token),
            length=len(context.token),
        )
    context.echo(sock)


def _stream(context: Context, family: int, *, polled: bool, opcode: int) -> None:
    with context.at("setup"):
        ring = uring.Ring(polled=polled)
    with ring, _made(context, ring, family, socket.SOCK_STREAM) as sock:
        _connect(context, ring, sock)
        _send(context, ring, sock, opcode)


@pair("tcp")
def uring_tcp(context: Context, family: int) -> None:
    """IORING_OP_SOCKET, CONNECT and SEND."""
    _stream(context, family, polled=False, opcode=uring.OP_SEND)


@pair("tcp")
def uring_polled_tcp(context: Context, family: int) -> None:
    """The same with IORING_SETUP_SQPOLL: a kernel thread makes the calls."""
    _stream(context, family, polled=True, opcode=uring.OP_SEND)


@route("tcp4")
def uring_zerocopy_tcp4(context: Context) -> None:
    """IORING_OP_SEND_ZC."""
    _stream(context, socket.AF_INET, polled=False, opcode=uring.OP_SEND_ZC)


@route("tcp4")
def uring_write_tcp4(context: Context) -> None:
    """IORING_OP_WRITE on a socket, under SQPOLL."""
    _stream(context, socket.AF_INET, polled=True, opcode=uring.OP_WRITE)


@pair("udp")
def uring_udp_connected(context: Context, family: int) -> None:
    """IORING_OP_CONNECT and SEND on a UDP socket."""
    with context.at("setup"):
        ring = uring.Ring()
    with ring, _made(context, ring, family, socket.SOCK_DGRAM) as sock:
        _connect(context, ring, sock)
        _send(context, ring, sock, uring.OP_SEND)


def _send_to(context: Context, family: int, *, polled: bool) -> None:
    with context.at("setup"):
        ring = uring.Ring(polled=polled)
    with ring, _made(context, ring, family, socket.SOCK_DGRAM) as sock:
        name = _address(family, context.target)
        with context.at("send"):
            ring.call(
                uring.OP_SEND,
                sock.fileno(),
                address=ring.buffer(context.token),
                length=len(context.token),
                offset=ring.buffer(name),
                address_length=len(name),
            )
        context.echo(sock)


@pair("udp")
def uring_udp_send_to(context: Context, family: int) -> None:
    """IORING_OP_SEND with a destination, on an unconnected UDP socket."""
    _send_to(context, family, polled=False)


@pair("udp")
def uring_polled_udp_send_to(context: Context, family: int) -> None:
    """The same under SQPOLL."""
    _send_to(context, family, polled=True)


@route("udp4")
def uring_udp_sendmsg4(context: Context) -> None:
    """IORING_OP_SENDMSG on an unconnected UDP socket, under SQPOLL."""
    with context.at("setup"):
        ring = uring.Ring(polled=True)
    with ring, _made(context, ring, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        header, keep = calls.message(context.token, calls.address4(*context.target))
        with context.at("send"):
            ring.call(uring.OP_SENDMSG, sock.fileno(), address=calls.address_of(header), length=1)
        del keep
        context.echo(sock)
