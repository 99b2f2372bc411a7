# SPDX-License-Identifier: Apache-2.0
"""Routes by which a program offers a port: the harness calls it and looks for the echo."""

from __future__ import annotations

import socket
import struct

from tests.kernel.routes import calls, uring
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import pair, route


def serve_stream(context: Context, listener: socket.socket, kind: str, calls_in: int = 1) -> None:
    """Answer until one caller's bytes were echoed."""
    listener.settimeout(context.patience_s)
    context.tell("serve", kind=kind, port=listener.getsockname()[1], calls=calls_in)
    with context.at("accept"):
        caller, _ = listener.accept()
    with caller, context.at("serve"):
        caller.settimeout(context.patience_s)
        caller.sendall(caller.recv(65536))


def serve_datagram(context: Context, sock: socket.socket, kind: str) -> None:
    """Answer one datagram; what a free server sent back is none of the caller's."""
    sock.settimeout(context.patience_s)
    context.tell("serve", kind=kind, port=sock.getsockname()[1], calls=1)
    with context.at("serve"):
        data, caller = sock.recvfrom(65536)
        while data == b"decoy":
            data, caller = sock.recvfrom(65536)
        sock.sendto(data, caller)


def _suffix(family: int) -> str:
    return "6" if family == socket.AF_INET6 else "4"


@pair("tcp", direction="in")
def serve_tcp(context: Context, family: int) -> None:
    """bind(2) to the licensed port, listen(2)."""
    with context.tcp(family) as sock:
        with context.at("bind"):
            sock.bind(context.target)
        with context.at("listen"):
            sock.listen()
        serve_stream(context, sock, f"tcp{_suffix(family)}")


@pair("udp", direction="in")
def serve_udp(context: Context, family: int) -> None:
    """bind(2) to the licensed port, receive and answer."""
    with context.udp(family) as sock:
        with context.at("bind"):
            sock.bind(context.target)
        serve_datagram(context, sock, f"udp{_suffix(family)}")


@route("tcp4", address="0.0.0.0", direction="in")
def serve_wildcard4(context: Context) -> None:
    """bind(2) to every address."""
    serve_tcp(context, socket.AF_INET)


@route("tcp4", address="::", direction="in")
def serve_dual_stack(context: Context) -> None:
    """An IPv6 listener on :: that takes IPv4 callers."""
    with context.tcp(socket.AF_INET6) as sock:
        with context.at("bind"):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(context.target)
        with context.at("listen"):
            sock.listen()
        serve_stream(context, sock, "tcp4")


@route("tcp4", address="::ffff:127.0.0.1", direction="in")
def serve_mapped_tcp(context: Context) -> None:
    """An IPv6 listener bound to ::ffff:127.0.0.1."""
    with context.tcp(socket.AF_INET6) as sock:
        with context.at("bind"):
            sock.bind(context.target)
        with context.at("listen"):
            sock.listen()
        serve_stream(context, sock, "tcp4")


@route("udp4", address="::ffff:127.0.0.1", direction="in")
def serve_mapped_udp(context: Context) -> None:
    """An IPv6 UDP socket bound to ::ffff:127.0.0.1."""
    with context.udp(socket.AF_INET6) as sock:
        with context.at("bind"):
            sock.bind(context.target)
        serve_datagram(context, sock, "udp4")


@route("udp4", address="0.0.0.0", direction="in")
def serve_unspec_family_udp4(context: Context) -> None:
    """bind(2) with family AF_UNSPEC in the address, which is taken for AF_INET."""
    with context.udp() as sock:
        with context.at("bind"):
            address = calls.address4(*context.target, family=socket.AF_UNSPEC)
            calls.bind(sock, address)
        serve_datagram(context, sock, "udp4")


@route("tcp4", direction="in")
def serve_mptcp4(context: Context) -> None:
    """An MPTCP listener, called by plain TCP."""
    with context.make(socket.AF_INET, socket.SOCK_STREAM, calls.IPPROTO_MPTCP) as sock:
        with context.at("bind"):
            sock.bind(context.target)
        with context.at("listen"):
            sock.listen()
        serve_stream(context, sock, "tcp4")


@pair("tcp", direction="in")
def serve_ephemeral(context: Context, family: int) -> None:
    """bind(2) to port 0, listen(2): the kernel picks the port."""
    with context.tcp(family) as sock:
        with context.at("bind"):
            sock.bind((context.address, 0))
        with context.at("listen"):
            sock.listen()
        serve_stream(context, sock, f"tcp{_suffix(family)}")


@pair("udp", direction="in")
def serve_ephemeral_udp(context: Context, family: int) -> None:
    """bind(2) of a UDP socket to port 0."""
    with context.udp(family) as sock:
        with context.at("bind"):
            sock.bind((context.address, 0))
        serve_datagram(context, sock, f"udp{_suffix(family)}")


@pair("tcp", direction="in")
def serve_bind_no_port(context: Context, family: int) -> None:
    """IP_BIND_ADDRESS_NO_PORT: the port is chosen by listen(2), past every bind hook."""
    with context.tcp(family) as sock:
        with context.at("option"):
            sock.setsockopt(socket.IPPROTO_IP, calls.IP_BIND_ADDRESS_NO_PORT, 1)
        with context.at("bind"):
            sock.bind((context.address, 0))
        with context.at("listen"):
            sock.listen()
        serve_stream(context, sock, f"tcp{_suffix(family)}")


@pair("tcp", direction="in")
def serve_no_bind(context: Context, family: int) -> None:
    """listen(2) with no bind(2)."""
    with context.tcp(family) as sock:
        with context.at("listen"):
            sock.listen()
        serve_stream(context, sock, f"tcp{_suffix(family)}")


@pair("udp", direction="in")
def serve_autobind_udp(context: Context, family: int) -> None:
    """A UDP socket that was never bound: its first send (to a free server) gives it a port."""
    with context.udp(family) as sock:
        with context.at("decoy"):
            sock.sendto(b"decoy", context.decoy)
        serve_datagram(context, sock, f"udp{_suffix(family)}")


@route("tcp4", direction="in")
def serve_before4(context: Context) -> None:
    """A listener that was bound before enforcement (before "bound" is answered)."""
    with context.tcp() as sock:
        with context.at("bind"):
            sock.bind(context.target)
            sock.listen()
        context.wait("bound")
        serve_stream(context, sock, "tcp4")


@route("udp4", direction="in")
def serve_before_udp4(context: Context) -> None:
    """A UDP socket that was bound before enforcement."""
    with context.udp() as sock:
        with context.at("bind"):
            sock.bind(context.target)
        context.wait("bound")
        serve_datagram(context, sock, "udp4")


@route("tcp4", direction="in", needs=("holder",))
def serve_reuseport4(context: Context) -> None:
    """SO_REUSEPORT: join the port of another process's listener and take some of its callers."""
    context.wait("listener")
    with context.tcp() as sock:
        with context.at("bind"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(context.target)
        with context.at("listen"):
            sock.listen(128)
        # 64 callers with hashed ports: all of them missing this listener has odds of 2**-64
        serve_stream(context, sock, "tcp4", calls_in=64)


@route("tcp4", direction="in")
def serve_uring4(context: Context) -> None:
    """IORING_OP_BIND and IORING_OP_LISTEN."""
    with context.at("setup"):
        ring = uring.Ring()
    with ring, context.tcp() as sock:
        name = calls.address4(*context.target)
        with context.at("bind"):
            ring.call(uring.OP_BIND, sock.fileno(), address=ring.buffer(name), offset=len(name))
        with context.at("listen"):
            ring.call(uring.OP_LISTEN, sock.fileno(), length=16)
        serve_stream(context, sock, "tcp4")


@route("udp4", direction="in")
def serve_raw4(context: Context) -> None:
    """A raw UDP socket reads what is sent to a port that it never binds, and answers."""
    with context.make(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
        context.tell("serve", kind="udp4", port=context.port, calls=1)
        with context.at("serve"):
            while True:
                data, _ = sock.recvfrom(65536)
                source, destination = struct.unpack_from("!HH", data, 20)
                if destination == context.port:
                    break
            answer = struct.pack("!HHHH", destination, source, len(data) - 20, 0) + data[28:]
            sock.sendto(answer, (context.address, 0))
