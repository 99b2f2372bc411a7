# SPDX-License-Identifier: Apache-2.0
"""Programs that use what is licensed without a pause, while a test does things to the agent.

``probe_life.py ROLE ARGUMENTS`` with the standard library only. Each goes on until its input
ends; a line on its input is answered by one line of JSON with its numbers so far.

    server                 echoes TCP on both loopbacks, one port; greets with one byte
    calls PORT SERVICE     connects (UDP and TCP, IPv4 and IPv6) to PORT, binds SERVICE, on and on
    stream PORT [HOST]     one TCP connection that ping-pongs as long as it can
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import selectors
import socket
import struct
import sys
import time

LIMIT_S = 30.0  # a peer silent for longer has failed; less than a test waits for an answer
PAUSE_S = 0.001  # a round takes about as long: half of a CPU is left to what is probed
ODDITIES_KEPT = 8
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # linger 0: no TIME_WAIT, ports never run out
HOSTS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def tell(numbers: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


def answered(numbers: dict[str, object]) -> bool:
    """Answer a question that waits; False once the input has ended."""
    if select.select([sys.stdin], [], [], 0)[0]:
        if not sys.stdin.readline():
            return False
        tell(numbers)
    return True


def server() -> None:
    """Echo; the first line says the port."""
    watched = selectors.DefaultSelector()
    port = 0
    for family, host in HOSTS:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
        port = listener.getsockname()[1]
        watched.register(listener, selectors.EVENT_READ, "listener")
    watched.register(sys.stdin, selectors.EVENT_READ, "input")
    tell({"port": port})
    while True:
        for key, _ in watched.select():
            if key.data == "input":
                return
            found = key.fileobj
            assert isinstance(found, socket.socket)
            if key.data == "listener":
                with contextlib.suppress(OSError):
                    made, _ = found.accept()
                    watched.register(made, selectors.EVENT_READ, "open")
                    made.send(b"!")
                continue
            try:
                data = found.recv(65536)
                if data:
                    found.send(data)
                    continue
            except OSError:  # reset by a probe that closed
                pass
            watched.unregister(found)
            found.close()


class Calls:
    """Counts what passed and what was refused, by errno."""

    def __init__(self, port: int, service: int) -> None:
        self.port = port
        self.service = service
        self.passed: dict[str, int] = {}
        self.refused: dict[str, dict[str, int]] = {}
        self.odd: list[str] = []
        self.datagrams = [
            (socket.socket(family, socket.SOCK_DGRAM), host) for family, host in HOSTS
        ]

    def numbers(self) -> dict[str, object]:
        return {"passed": self.passed, "refused": self.refused, "odd": self.odd}

    def attempt(self, kind: str, action: object, *arguments: object) -> None:
        try:
            action(*arguments)  # type: ignore[operator]
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, type(error).__name__)
            names = self.refused.setdefault(kind, {})
            names[name] = names.get(name, 0) + 1
            if name != "ENOKEY" and len(self.odd) < ODDITIES_KEPT:
                self.odd.append(f"{time.time():.3f} {kind}: {error}")
        else:
            self.passed[kind] = self.passed.get(kind, 0) + 1

    def connect_tcp(self, family: int, host: str) -> None:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(LIMIT_S)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            sock.connect((host, self.port))
            if sock.recv(1) != b"!":  # a byte from the server: not only the handshake passed
                raise ConnectionAbortedError(errno.ECONNABORTED, "closed without a byte")

    def bind(self, family: int, host: str) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, self.service))

    def round(self) -> None:
        for _ in range(16):
            for sock, host in self.datagrams:
                self.attempt("udp", sock.connect, (host, self.port))
        for family, host in HOSTS:
            self.attempt("tcp", self.connect_tcp, family, host)
            self.attempt("bind", self.bind, family, host)


def calls(port: int, service: int) -> None:
    found = Calls(port, service)
    while answered(found.numbers()):
        found.round()
        time.sleep(PAUSE_S)


def stream(port: int, host: str = "127.0.0.1") -> None:
    """The first line says whether it is open."""
    echoes, broken = 0, ""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(LIMIT_S)
    try:
        sock.connect((host, port))
        greeting = sock.recv(1)
    except OSError as error:
        tell({"open": False, "errno": errno.errorcode.get(error.errno or 0, str(error))})
        return
    tell({"open": greeting == b"!", "local": sock.getsockname()[1]})
    while answered({"echoes": echoes, "broken": broken}):
        if not broken:
            try:
                sock.sendall(b"?")
                if sock.recv(1) != b"?":
                    broken = "closed by the peer"
                echoes += not broken
            except OSError as error:
                broken = errno.errorcode.get(error.errno or 0, type(error).__name__)
        time.sleep(2 * PAUSE_S)


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "server":
        server()
    elif role == "calls":
        calls(int(rest[0]), int(rest[1]))
    else:
        stream(int(rest[0]), *rest[1:])
