# SPDX-License-Identifier: Apache-2.0
"""A server that answers everything and remembers every byte: the evidence of the route tests."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import selectors
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tests.kernel.harness.namespaces import Netns
from tests.kernel.routes import addresses
from tests.kernel.routes.calls import IPPROTO_MPTCP
from tests.kernel.routes.udp import IPPROTO_UDPLITE

TCP_FASTOPEN: Final = 23
_FIRST: Final = 21000 + os.getpid() * 97 % 10_000
"""Elsewhere in each process: two suites at a time take ports."""
_PORTS: Final = itertools.cycle((*range(_FIRST, 31000), *range(21000, _FIRST)))
"""Below the ephemeral range, so that no client's port is in the way."""

_STREAMS: Final = {"tcp": 0, "mptcp": IPPROTO_MPTCP}
_DATAGRAMS: Final = {"udp": 0, "udplite": IPPROTO_UDPLITE}
_RAW4: Final = {"icmp4": socket.IPPROTO_ICMP, "other4": addresses.EXPERIMENTAL_PROTOCOL}
_RAW6: Final = {"icmp6": socket.IPPROTO_ICMPV6, "other6": addresses.EXPERIMENTAL_PROTOCOL}
_OPTIONAL: Final = (OSError,)
"""What a kernel without MPTCP or UDP-Lite raises; its routes then report "unsupported"."""


@dataclass(slots=True)
class Arrival:
    """The bytes of one connection, or of one datagram."""

    kind: str
    local: str
    data: bytearray


@dataclass(slots=True)
class _Endpoint:
    kind: str
    sock: socket.socket
    connection: Arrival | None = None


def free_port() -> int:
    """A port that is nobody's now, outside the ephemeral range."""
    for port in itertools.islice(_PORTS, 10000):
        with contextlib.ExitStack() as stack:
            try:
                for family, host in ((socket.AF_INET, ""), (socket.AF_INET6, "")):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        sock = stack.enter_context(socket.socket(family, kind))
                        if family == socket.AF_INET6:
                            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                        sock.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 21000 and 31000")


class Recorder:
    """TCP, MPTCP, UDP, UDP-Lite, ICMP and raw servers on some addresses of one namespace.

    `port` and `decoy_port` carry TCP, UDP and UDP-Lite, `mptcp_port` MPTCP. All of them echo.
    `ports` sets the first two, for a namespace in which they must be what they are elsewhere.
    """

    def __init__(
        self,
        hosts: Sequence[str] = (*addresses.LOOPBACKS4, *addresses.LOOPBACKS6),
        namespace: Netns | None = None,
        ports: tuple[int, int] | None = None,
    ) -> None:
        self.port, self.decoy_port = ports or (free_port(), free_port())
        self.mptcp_port = free_port()
        self._arrivals: list[Arrival] = []
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._settle = threading.Event()
        self._settled = threading.Event()
        self._stop = threading.Event()
        self._waker, self._wakened = socket.socketpair()
        self._wakened.setblocking(False)
        self._selector.register(self._wakened, selectors.EVENT_READ, None)
        opening = functools.partial(self._open, hosts)
        endpoints = namespace.run(opening) if namespace else opening()
        for endpoint in endpoints:
            endpoint.sock.setblocking(False)
            self._selector.register(endpoint.sock, selectors.EVENT_READ, endpoint)
        self._thread = threading.Thread(target=self._loop, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._waker.send(b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Endpoint):
                key.data.sock.close()
        self._selector.close()
        self._waker.close()
        self._wakened.close()

    def port_of(self, kind: str) -> int:
        """Where a route of this evidence sends to; protocols without ports get 0."""
        if kind.startswith("mptcp"):
            return self.mptcp_port
        return self.port

    def kinds_that_got(self, payload: bytes) -> frozenset[str]:
        """Which servers got these bytes, once everything that was under way has been read."""
        self._settle_down()
        with self._lock:
            return frozenset(a.kind for a in self._arrivals if payload in a.data)

    def _settle_down(self) -> None:
        # What a program sent over loopback or veth is in a receive queue when its call returns;
        # so one pass over all sockets that finds nothing is the end.
        self._settled.clear()
        self._settle.set()
        self._waker.send(b"x")
        if not self._settled.wait(60):
            raise RuntimeError("the recorder's thread is stuck")

    def _open(self, hosts: Sequence[str]) -> list[_Endpoint]:
        endpoints = []
        for host in hosts:
            six = ":" in host
            family, suffix = (socket.AF_INET6, "6") if six else (socket.AF_INET, "4")
            for kind, protocol in _STREAMS.items():
                both = (self.mptcp_port,) if kind == "mptcp" else (self.port, self.decoy_port)
                for port in both:
                    with contextlib.suppress(*(_OPTIONAL if kind == "mptcp" else ())):
                        sock = socket.socket(family, socket.SOCK_STREAM, protocol)
                        endpoints.append(_Endpoint(kind + suffix, sock))
                        self._listen(sock, host, port, fast_open=kind == "tcp")
            for kind, protocol in _DATAGRAMS.items():
                for port in (self.port, self.decoy_port):
                    with contextlib.suppress(*(_OPTIONAL if kind == "udplite" else ())):
                        sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
                        endpoints.append(_Endpoint(kind + suffix, sock))
                        sock.bind((host, port))
        for family, protocols in ((socket.AF_INET, _RAW4), (socket.AF_INET6, _RAW6)):
            for kind, protocol in protocols.items():
                endpoints.append(_Endpoint(kind, socket.socket(family, socket.SOCK_RAW, protocol)))
        return endpoints

    @staticmethod
    def _listen(sock: socket.socket, host: str, port: int, *, fast_open: bool) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        sock.bind((host, port))
        sock.listen(128)

    def _loop(self) -> None:
        while not self._stop.is_set():
            settling = self._settle.is_set()
            ready = self._selector.select(0 if settling else None)
            busy = False
            for key, _ in ready:
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        self._wakened.recv(64)
                    continue
                busy = True
                with contextlib.suppress(OSError):  # a peer that is gone or refused: not ours
                    self._serve(key.data)
            if settling and not busy:
                self._settle.clear()
                self._settled.set()

    def _serve(self, endpoint: _Endpoint) -> None:
        kind, sock = endpoint.kind, endpoint.sock
        if endpoint.connection is not None:
            self._serve_connection(endpoint, endpoint.connection)
        elif sock.type == socket.SOCK_STREAM:
            made, _ = sock.accept()
            made.setblocking(False)
            if made.proto != IPPROTO_MPTCP:  # which has no urgent data
                made.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            arrival = Arrival(kind, made.getsockname()[0], bytearray())
            with self._lock:
                self._arrivals.append(arrival)
            self._selector.register(made, selectors.EVENT_READ, _Endpoint(kind, made, arrival))
        else:
            data, peer = sock.recvfrom(65536)
            if kind == "icmp4" and data[(data[0] & 15) * 4] != 8:
                return  # only requests count: the kernel's own replies carry the payload too
            if kind == "icmp6" and data[0] != 128:
                return
            with self._lock:
                self._arrivals.append(Arrival(kind, sock.getsockname()[0], bytearray(data)))
            if sock.type == socket.SOCK_DGRAM:
                sock.sendto(data, peer)

    def _serve_connection(self, endpoint: _Endpoint, arrival: Arrival) -> None:
        try:
            data = endpoint.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            with self._lock:
                arrival.data += data
            endpoint.sock.sendall(data)
        else:
            self._selector.unregister(endpoint.sock)
            endpoint.sock.close()
