# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of its way out: what it asks `licagent.uplink.server` for.

Without LICAGENT_UPLINK in the environment there is none, and the daemon uses the network itself.
Every question is one message on a SOCK_SEQPACKET socket that only root may open.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "LICAGENT_UPLINK"
MESSAGE_MAX_BYTES: Final = 16 * 1024
_ANSWER_S: Final = 15.0
"""Longer than a name server's time-out and the start of the other process."""
_BACKLOG: Final = 16


class UplinkError(OSError):
    """The way out does not answer, or could not do what it was asked."""


@dataclass(slots=True)
class _Carried:
    """A socket of ours whose connections the other process carries to one server."""

    path: Path
    told: socket.socket  # closed by the other process when it ends; what fails is said here
    failure: str = ""

    def is_alive(self) -> bool:
        """Whether the other process still has it; takes what it says meanwhile."""
        if self.told.fileno() < 0:  # given up, and not made anew since
            return False
        poll = select.poll()
        poll.register(self.told, select.POLLIN | select.POLLHUP)
        while events := poll.poll(0):
            try:
                message = self.told.recv(MESSAGE_MAX_BYTES, socket.MSG_DONTWAIT)
            except OSError:
                return False
            if not message or events[0][1] & select.POLLERR:
                return False
            self.failure = str(json.loads(message).get("failure", ""))
        return True


@dataclass(slots=True)
class Uplink:
    """One way out. Methods may be called on any thread."""

    socket_path: Path
    folder: Path
    """Where sockets of our own are made; root's."""
    _carried: dict[str, _Carried] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, server: str) -> Path:
        """A UNIX socket whose connections end at `server` ("host:port"). Does not wait.

        What goes through it is not looked at: TLS is between whoever connects and the server.
        Raises UplinkError where there is no way out.
        """
        with self._lock:
            found = self._carried.get(server)
            if found is not None:
                if found.is_alive():
                    return found.path
                found.told.close()
            number = len(self._carried) if found is None else list(self._carried).index(server)
            path = self.folder / f"uplink-{number}.sock"
            with contextlib.closing(_listening(path)) as listener:
                told = self._send({"op": "carry", "server": server}, listener.fileno())
            # Once it is handed over it is closed here: when the other process ends, a connection
            # is refused and waits for nobody.
            self._carried[server] = _Carried(path, told)
            return path

    def failure_of(self, server: str) -> str:
        """Why the last connection to `server` could not be made; "" where none failed."""
        with self._lock:
            found = self._carried.get(server)
            if found is None:
                return ""
            return found.failure if found.is_alive() else "the way out (licagent-uplink) has ended"

    def resolve(self, server: str) -> tuple[tuple[str, int], ...]:
        """Addresses and port of "host:port"; nothing where the name has none. Blocks."""
        answer, _ = self._ask({"op": "resolve", "server": server})
        return tuple((str(address), int(port)) for address, port in answer["addresses"])

    def clock(self) -> Mapping[str, Any]:
        """What adjtimex(2) says, with the wall clock's distance from CLOCK_BOOTTIME. Blocks."""
        return self._ask({"op": "clock"})[0]

    def listen(self, host: str, port: int) -> socket.socket:
        """A TCP socket that listens there; the connections that come are ours. Blocks."""
        _answer, fds = self._ask({"op": "listen", "host": host, "port": port})
        if not fds:
            raise UplinkError(f"no socket came for {host}:{port}")
        return socket.socket(fileno=fds[0])

    def close(self) -> None:
        """Remove the sockets of our own."""
        with self._lock:
            for carried in self._carried.values():
                carried.told.close()
                carried.path.unlink(missing_ok=True)
            self._carried.clear()

    def _send(self, question: Mapping[str, object], *fds: int) -> socket.socket:
        asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            asked.settimeout(_ANSWER_S)
            asked.connect(os.fspath(self.socket_path))
            socket.send_fds(asked, [json.dumps(question).encode()], list(fds))
        except OSError as error:
            asked.close()
            raise UplinkError(
                error.errno or 0, f"no way out at {self.socket_path}: {error.strerror or error}"
            ) from error
        return asked

    def _ask(self, question: Mapping[str, object]) -> tuple[dict[str, Any], list[int]]:
        with self._send(question) as asked:
            try:
                message, fds, _flags, _address = socket.recv_fds(asked, MESSAGE_MAX_BYTES, 1)
            except OSError as error:
                raise UplinkError(f"no answer to {question['op']!r}: {error}") from error
        if not message:
            raise UplinkError(f"the way out ended before it answered {question['op']!r}")
        answer: dict[str, Any] = json.loads(message)
        if "error" in answer:
            raise UplinkError(str(answer["error"]))
        return answer, fds


def _listening(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # before it listens: nobody else was able to connect meanwhile
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


_found: Uplink | None = None
_finding: Final = threading.Lock()


def uplink(environment: Mapping[str, str] | None = None) -> Uplink | None:
    """The way out that the environment names, one for the process; None where there is none."""
    global _found  # noqa: PLW0603 - one for the process, as the environment is
    variables = os.environ if environment is None else environment
    path = variables.get(VARIABLE, "")
    if not path.startswith("/"):
        return None
    with _finding:
        if _found is None or _found.socket_path != Path(path):
            folder = variables.get("RUNTIME_DIRECTORY", "").partition(":")[0]
            _found = Uplink(Path(path), Path(folder) if folder else Path(path).parent)
            atexit.register(_found.close)
        return _found
