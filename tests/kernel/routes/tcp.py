# SPDX-License-Identifier: Apache-2.0
"""Routes over TCP and MPTCP (and SCTP, where the kernel has it)."""

from __future__ import annotations

import errno
import select
import socket
import struct
from typing import Final

from tests.kernel.routes import calls
from tests.kernel.routes.addresses import OTHER_LOOPBACK4
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import pair, route

TCPI_OPT_SYN_DATA: Final = 32
SOL_MPTCP: Final = 284
MPTCP_INFO: Final = 1
MPTCP_INFO_FALLBACK: Final = 1
ZERO4: Final = "0.0.0.0"
"""The unspecified address: as a destination it is this host."""


@pair("tcp")
def tcp_connect(context: Context, family: int) -> None:
    """connect(2) and send(2), the plain way."""
    with context.tcp(family) as sock:
        context.connect(sock)
        context.exchange(sock)


@pair("tcp")
def tcp_nonblocking(context: Context, family: int) -> None:
    """A non-blocking connect(2), finished by poll(2)."""
    with context.tcp(family) as sock:
        sock.setblocking(False)
        with context.at("connect"):
            result = sock.connect_ex(context.target)
            if result == errno.EINPROGRESS:
                _, ready, _ = select.select([], [sock], [], context.patience_s)
                if not ready:
                    raise TimeoutError(errno.ETIMEDOUT, "no answer to the SYN")
                result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if result:
                raise OSError(result, "connect")
        sock.settimeout(context.patience_s)
        context.exchange(sock)


def _syn_data(context: Context, sock: socket.socket) -> None:
    options = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
    context.details["syn_data"] = bool(options & TCPI_OPT_SYN_DATA)


@pair("tcp", network="fresh", proof={"syn_data": True})
def tcp_msg_fastopen(context: Context, family: int) -> None:
    """sendto(2) with MSG_FASTOPEN: the payload travels in the SYN, connect(2) is never called."""
    with context.tcp(family) as sock:
        with context.at("send"):
            sock.sendto(context.token, socket.MSG_FASTOPEN, context.target)
        context.echo(sock)
        _syn_data(context, sock)


@pair("tcp", network="fresh", proof={"syn_data": True})
def tcp_fastopen_connect(context: Context, family: int) -> None:
    """TCP_FASTOPEN_CONNECT: connect(2) only remembers, the first send carries the SYN."""
    with context.tcp(family) as sock:
        with context.at("option"):
            sock.setsockopt(socket.IPPROTO_TCP, calls.TCP_FASTOPEN_CONNECT, 1)
        context.connect(sock)
        context.exchange(sock)
        _syn_data(context, sock)


@route("tcp4", network="fresh", proof={"syn_data": True})
def tcp_msg_fastopen_sendmsg4(context: Context) -> None:
    """sendmsg(2) with MSG_FASTOPEN, after an AF_UNSPEC connect of the same socket."""
    with context.tcp() as sock:
        context.connect(sock, context.decoy)
        with context.at("disconnect"):
            calls.disconnect(sock)
        with context.at("send"):
            sock.sendmsg([context.token], [], socket.MSG_FASTOPEN, context.target)
        context.echo(sock)
        _syn_data(context, sock)


def _is_multipath(context: Context, sock: socket.socket) -> None:
    try:
        info = sock.getsockopt(SOL_MPTCP, MPTCP_INFO, 64)
    except OSError:  # EOPNOTSUPP once it has fallen back to TCP
        context.details["mptcp"] = False
    else:
        (flags,) = struct.unpack_from("=I", info, 8)
        context.details["mptcp"] = not flags & MPTCP_INFO_FALLBACK


@pair("mptcp", proof={"mptcp": True})
def mptcp_connect(context: Context, family: int) -> None:
    """An MPTCP socket, whose packets go out on a subflow made by the kernel."""
    with context.make(family, socket.SOCK_STREAM, calls.IPPROTO_MPTCP) as sock:
        context.connect(sock)
        context.exchange(sock)
        _is_multipath(context, sock)


@route("mptcp4", address="::ffff:127.0.0.1", cidr="127.0.0.1/32", proof={"mptcp": True})
def mptcp_mapped(context: Context) -> None:
    """An IPv6 MPTCP socket to an IPv4-mapped address."""
    with context.make(socket.AF_INET6, socket.SOCK_STREAM, calls.IPPROTO_MPTCP) as sock:
        context.connect(sock)
        context.exchange(sock)
        _is_multipath(context, sock)


@pair("tcp")
def mptcp_to_tcp(context: Context, family: int) -> None:
    """An MPTCP socket to a plain TCP server: it falls back to TCP after the connect."""
    with context.make(family, socket.SOCK_STREAM, calls.IPPROTO_MPTCP) as sock:
        context.connect(sock)
        context.exchange(sock)


@pair("tcp")
def tcp_unspec_again(context: Context, family: int) -> None:
    """Connect to a free server, connect(AF_UNSPEC), connect to the licensed one."""
    with context.tcp(family) as sock:
        context.connect(sock, context.decoy)
        with context.at("disconnect"):
            calls.disconnect(sock)
        context.connect(sock)
        context.exchange(sock)


@route("tcp4")
def tcp_unspec_same4(context: Context) -> None:
    """Connect to the server, connect(AF_UNSPEC), connect to the same server."""
    with context.tcp() as sock:
        context.connect(sock)
        with context.at("disconnect"):
            calls.disconnect(sock)
        context.connect(sock)
        context.exchange(sock)


@route("tcp4")
def tcp_listener_reconnect4(context: Context) -> None:
    """A listening socket is disconnected and becomes a client."""
    with context.tcp() as sock:
        with context.at("setup"):
            sock.bind((context.address, 0))
            sock.listen()
            calls.disconnect(sock)
        context.connect(sock)
        context.exchange(sock)


@route("tcp4")
def tcp_accepted_reconnect4(context: Context) -> None:
    """An accepted socket, with what it inherited, is disconnected and becomes a client."""
    with context.tcp() as listener, context.tcp() as caller:
        with context.at("setup"):
            listener.bind((context.address, 0))
            listener.listen()
            caller.connect(listener.getsockname())
            accepted, _ = listener.accept()
        with accepted:
            with context.at("disconnect"):
                calls.disconnect(accepted)
            listener.close()
            accepted.settimeout(context.patience_s)
            context.connect(accepted)
            context.exchange(accepted)


@pair("tcp")
def tcp_ephemeral_bind(context: Context, family: int) -> None:
    """bind(2) to port 0 first, then connect."""
    with context.tcp(family) as sock:
        with context.at("bind"):
            sock.bind((context.address, 0))
        context.connect(sock)
        context.exchange(sock)


@pair("tcp")
def tcp_bind_no_port(context: Context, family: int) -> None:
    """bind(2) to an address with IP_BIND_ADDRESS_NO_PORT, which passes no post_bind hook."""
    with context.tcp(family) as sock:
        with context.at("option"):
            sock.setsockopt(socket.IPPROTO_IP, calls.IP_BIND_ADDRESS_NO_PORT, 1)
        with context.at("bind"):
            sock.bind((context.address, 0))
        context.connect(sock)
        context.exchange(sock)


@route("tcp4", address=ZERO4, cidr="127.0.0.1/32")
def tcp_zero4(context: Context) -> None:
    """connect(2) to 0.0.0.0, which is this host."""
    with context.tcp() as sock:
        context.connect(sock)
        context.exchange(sock)


@route("tcp6", address="::", cidr="::1/128")
def tcp_zero6(context: Context) -> None:
    """connect(2) to ::, which is this host."""
    with context.tcp(socket.AF_INET6) as sock:
        context.connect(sock)
        context.exchange(sock)


@route("tcp4", address=ZERO4, cidr=f"{OTHER_LOOPBACK4}/32", proof={"peer": OTHER_LOOPBACK4})
def tcp_zero_bound_other4(context: Context) -> None:
    """connect(2) to 0.0.0.0 from a socket bound to 127.0.0.2 goes to 127.0.0.2, not 127.0.0.1."""
    with context.tcp() as sock:
        with context.at("bind"):
            sock.bind((OTHER_LOOPBACK4, 0))
        context.connect(sock)
        context.details["peer"] = sock.getpeername()[0]
        context.exchange(sock)


@route("none", protocol="sctp")
def sctp_connect(context: Context) -> None:
    """An SCTP socket."""
    with context.make(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as sock:
        context.connect(sock)
        context.exchange(sock)
