# SPDX-License-Identifier: Apache-2.0
"""Programs with open connections, for tests of what ends them: ``probe_streams.py ROLE ...``.

The standard library only. Each says one line of JSON at its start, answers every line of its
input (JSON) by one, and goes on until its input ends.

    pour                  a TCP server that sends without end, a little every few milliseconds;
                          it says how long its longest pause was
    download PORT [HOST]  receives from it and counts
    many PORT COUNT       COUNT connections to an echo server, IPv4 and IPv6 in turn
    serve PORT            an echo server on a port of its own choice
    once KIND HOST PORT   one attempt to use or offer a port, and how it ended
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import sys
import time

LIMIT_S = 30.0  # on a busy machine either end may stand still for seconds
PATIENCE_S = 15.0  # for an echo; a question may say less, where none is expected
POUR_S = 0.005
POURED_BYTES = 4096
LOOPBACKS = ("127.0.0.1", "::1")


def tell(**numbers: object) -> None:
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


def name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def family_of(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listeners(port: int) -> list[socket.socket]:
    """On both loopbacks, the same port."""
    found: list[socket.socket] = []
    for host in LOOPBACKS:
        sock = socket.socket(family_of(host), socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(256)
        sock.setblocking(False)
        port = sock.getsockname()[1]
        found.append(sock)
    return found


def pour() -> None:
    listening = listeners(0)
    tell(port=listening[0].getsockname()[1])
    pouring: list[socket.socket] = []
    pause_s, poured_at = 0.0, time.monotonic()
    while True:
        ready, _, _ = select.select([*listening, sys.stdin], [], [], POUR_S)
        now = time.monotonic()
        pause_s, poured_at = max(pause_s, now - poured_at), now
        for listener in ready:
            if listener is sys.stdin:
                if not sys.stdin.readline():
                    return
                tell(pause_s=pause_s)
                continue
            made, _ = listener.accept()
            made.setblocking(False)
            pouring.append(made)
        for sock in list(pouring):
            try:
                sock.send(b"." * POURED_BYTES)
            except BlockingIOError:  # nobody takes it: silenced, or slow
                continue
            except OSError:
                pouring.remove(sock)
                sock.close()


def download(port: int, host: str = LOOPBACKS[0]) -> None:
    sock = socket.socket(family_of(host), socket.SOCK_STREAM)
    sock.settimeout(LIMIT_S)
    try:
        sock.connect((host, port))
        received = len(sock.recv(65536))
    except OSError as error:
        tell(open=False, errno=name_of(error))
        return
    last_at, broken = time.time(), ""
    sock.setblocking(False)
    tell(open=True)
    while True:
        ready, _, _ = select.select([sys.stdin] if broken else [sys.stdin, sock], [], [])
        # All of it, before a question is answered: what is counted later has come later.
        while not broken:
            try:
                more = len(sock.recv(65536))
            except BlockingIOError:
                break
            except OSError as error:
                broken = name_of(error)
                break
            if not more:
                broken = "closed by the peer"
                break
            received += more
            last_at = time.time()
        if sys.stdin in ready:
            if not sys.stdin.readline():
                return
            tell(received=received, last_at=last_at, broken=broken)


class Many:
    """Connections that are pinged when somebody asks."""

    def __init__(self, port: int, count: int) -> None:
        self.sockets: list[socket.socket] = []
        self.broken: dict[str, int] = {}
        self.silent = 0  # open, but the last ping was not echoed
        for number in range(count):
            host = LOOPBACKS[number % 2]
            sock = socket.socket(family_of(host), socket.SOCK_STREAM)
            sock.settimeout(LIMIT_S)
            try:
                sock.connect((host, port))
                sock.recv(1)  # the greeting
            except OSError as error:
                self.note(name_of(error))
            else:
                self.sockets.append(sock)

    def note(self, name: str) -> None:
        self.broken[name] = self.broken.get(name, 0) + 1

    def ping(self, patience_s: float) -> None:
        waiting = []
        for sock in list(self.sockets):
            try:
                sock.send(b"?")
                waiting.append(sock)
            except OSError as error:
                self.end(sock, name_of(error))
        end = time.monotonic() + patience_s
        # Looked at once more after the end: this process may have stood still until then.
        while waiting and (
            ready := select.select(waiting, [], [], max(0.0, end - time.monotonic()))[0]
        ):
            for sock in ready:
                waiting.remove(sock)
                try:
                    if not sock.recv(4096):
                        self.end(sock, "closed by the peer")
                except OSError as error:
                    self.end(sock, name_of(error))
        self.silent = len(waiting)

    def end(self, sock: socket.socket, name: str) -> None:
        self.note(name)
        self.sockets.remove(sock)

    def tell(self) -> None:
        alive = len(self.sockets) - self.silent
        tell(alive=alive, broken=self.broken, silent=self.silent)


def many(port: int, count: int) -> None:
    found = Many(port, count)
    found.tell()
    while line := sys.stdin.readline():
        found.ping(json.loads(line).get("patience_s", PATIENCE_S))
        found.tell()


def serve(port: int) -> None:
    try:
        listening = listeners(port)
    except OSError as error:
        tell(serving=False, errno=name_of(error))
        return
    tell(serving=True, port=listening[0].getsockname()[1])
    accepted: list[socket.socket] = []
    broken: dict[str, int] = {}
    while True:
        # The question last: what had happened when it was put is in the answer.
        ready, _, _ = select.select([*listening, *accepted, sys.stdin], [], [])
        for sock in ready:
            if sock is sys.stdin:
                if not sys.stdin.readline():
                    return
                tell(accepted=len(accepted), listening=len(listening), broken=broken)
            elif sock in listening:
                try:
                    made, _ = sock.accept()
                except BlockingIOError:
                    continue
                except OSError:  # the listener itself was ended
                    listening.remove(sock)
                    continue
                accepted.append(made)
                made.send(b"!")
            else:
                try:
                    data = sock.recv(65536)
                    if data:
                        sock.send(data)
                        continue
                    name = "closed by the peer"
                except OSError as error:
                    name = name_of(error)
                broken[name] = broken.get(name, 0) + 1
                accepted.remove(sock)


def once(kind: str, host: str, port: int) -> None:
    """`kind`: tcp or udp (connect), bind-tcp or bind-udp."""
    shape = socket.SOCK_STREAM if kind.endswith("tcp") else socket.SOCK_DGRAM
    with socket.socket(family_of(host), shape) as sock:
        sock.settimeout(LIMIT_S)
        try:
            if kind.startswith("bind"):
                sock.bind((host, port))
            else:
                sock.connect((host, port))
                if kind == "tcp":
                    with contextlib.suppress(TimeoutError):
                        sock.recv(1)
        except OSError as error:
            tell(errno=name_of(error))
        else:
            tell(errno=None)


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "pour":
        pour()
    elif role == "download":
        download(int(rest[0]), *rest[1:])
    elif role == "many":
        many(int(rest[0]), int(rest[1]))
    elif role == "serve":
        serve(int(rest[0]))
    else:
        once(rest[0], rest[1], int(rest[2]))
