# SPDX-License-Identifier: Apache-2.0
"""What every route program shares: its description, its context, and how it reports.

A program talks to the harness by lines of JSON: it writes {"wait": what, ...} and reads one
line back where it needs something done from outside (a move to another cgroup, say), writes
{"tell": what, ...} where it only reports, and ends with one {"outcome": ...} line.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

PATIENCE_S: Final = 20.0
"""Longest wait for what must come; on a busy machine either end may stand still for seconds."""
SILENCE_S: Final = 0.8
"""Longest wait for what shall not come: each refusal that is a silence takes this long."""

UNSUPPORTED: Final = frozenset(
    {
        errno.EPROTONOSUPPORT,
        errno.ESOCKTNOSUPPORT,
        errno.EAFNOSUPPORT,
        errno.EOPNOTSUPP,
        errno.ENOPROTOOPT,
        errno.ENOSYS,
    }
)

SETUP_STAGES: Final = frozenset({"socket", "option", "setup"})
"""Stages in which an errno of UNSUPPORTED speaks of the kernel, not of a refusal."""


class Unsupported(Exception):
    """The kernel cannot do this at all; the text says what is missing."""


@dataclass(slots=True)
class Context:
    """What a program is given, and what it says of itself."""

    address: str
    port: int
    decoy_port: int
    token: bytes
    options: Mapping[str, str] = field(default_factory=dict)
    stage: str = "start"
    details: dict[str, Any] = field(default_factory=dict)
    patience_s: float = PATIENCE_S
    """Longest wait for the target; SILENCE_S where the harness expects nothing of it."""

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Name the step that is under way, for the report of an error in it."""
        self.stage = stage
        yield

    def tell(self, what: str, **facts: object) -> None:
        """Report something and go on."""
        _write({"tell": what, **facts})

    def wait(self, what: str, **facts: object) -> dict[str, Any]:
        """Ask the harness for something and wait until it is done; answers what it says."""
        _write({"wait": what, **facts})
        line = sys.stdin.readline()
        if not line:
            raise RuntimeError(f"the harness went away while {what!r} was awaited")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    @property
    def target(self) -> tuple[str, int]:
        """Where the bytes shall go."""
        return (self.address, self.port)

    @property
    def decoy(self) -> tuple[str, int]:
        """A server on the same address whose port is no resource."""
        return (self.address, self.decoy_port)

    def make(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Make a socket that waits for patience_s; stage "socket"."""
        self.stage = "socket"
        made = socket.socket(family, kind, protocol)
        made.settimeout(self.patience_s)
        return made

    def tcp(self, family: int = socket.AF_INET) -> socket.socket:
        return self.make(family, socket.SOCK_STREAM)

    def udp(self, family: int = socket.AF_INET) -> socket.socket:
        return self.make(family, socket.SOCK_DGRAM)

    def connect(self, sock: socket.socket, target: tuple[str, int] | None = None) -> None:
        with self.at("connect"):
            sock.connect(target or self.target)

    def exchange(self, sock: socket.socket) -> None:
        """Send the token on a connected socket and wait for its echo."""
        with self.at("send"):
            sock.sendall(self.token)
        self.echo(sock)

    def exchange_decoy(self, sock: socket.socket) -> None:
        """The same with the free server that `sock` is connected to: its tag is then in use."""
        with self.at("decoy"):
            sock.sendall(b"decoy")
        self.echo(sock, b"decoy")

    def echo(self, sock: socket.socket, expected: bytes | None = None) -> None:
        """Wait until the token came back, or what was sent to the free server (`expected`)."""
        stage, limit_s = ("decoy", PATIENCE_S) if expected else ("echo", self.patience_s)
        expected = expected or self.token
        with self.at(stage), _waiting(sock, limit_s):
            got = b""
            while expected not in got:
                more = sock.recv(65536)
                if not more:
                    raise ConnectionResetError(errno.ECONNRESET, "closed before the echo")
                got += more


def execute(program: Callable[[Context], None], context: Context) -> dict[str, Any]:
    """Run a program to its end and say how it went."""
    report: dict[str, Any] = {"outcome": "passed", "errno": None, "message": ""}
    try:
        program(context)
    except Unsupported as missing:
        report |= {"outcome": "unsupported", "message": str(missing)}
    except TimeoutError as late:
        report |= {"outcome": "timeout", "errno": "ETIMEDOUT", "message": str(late)}
    except OSError as error:
        number = error.errno or 0
        outcome = "refused"
        if number in UNSUPPORTED and context.stage in SETUP_STAGES:
            outcome = "unsupported"
        elif number in {errno.ETIMEDOUT, errno.EAGAIN}:
            outcome = "timeout"
        report |= {
            "outcome": outcome,
            "errno": errno.errorcode.get(number, str(number)),
            "message": os.strerror(number) if number else str(error),
        }
    return report | {"stage": context.stage, "details": context.details}


@contextmanager
def _waiting(sock: socket.socket, limit_s: float) -> Iterator[None]:
    """Bound the waits of a socket for a while; what went round Python's limit goes on so."""
    before = sock.gettimeout()
    sock.settimeout(limit_s)
    try:
        yield
    finally:
        sock.settimeout(before)


def _write(line: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
