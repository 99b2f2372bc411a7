# SPDX-License-Identifier: Apache-2.0
"""The command line's side of the local API: blocking, with one deadline for everything.

A hung daemon (stopped, or with its accept queue full) costs the caller `timeout_s` and no more.
Neither asyncio nor anything outside the standard library is imported: this is on the path of
`licagent status`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from licagent.local.errors import ErrorCode, LocalError
from licagent.local.wire import (
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    SCHEMA_VERSION,
    decode_reply,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DEFAULT_TIMEOUT_S: Final = 2.0

_RETRY_S: Final = 0.01
_CROWDED_RETRY_S: Final = 0.05
_CHUNK_BYTES: Final = 64 * 1024


class LocalClient:
    """Asks the daemon behind the socket at `path`; each call makes a connection of its own."""

    def __init__(self, path: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def call(self, method: str, params: Mapping[str, object] | None = None) -> dict[str, object]:
        """The result of a method, within the timeout.

        LocalError: the daemon's own, or NOT_RUNNING, TIMEOUT, PERMISSION found here.
        """
        deadline = time.monotonic() + self._timeout_s
        crowded: LocalError | None = None
        while True:
            try:
                with self._request(method, params, deadline) as connection:
                    reply = _Lines(connection, self._path).next(deadline, self._timeout_s)
            except LocalError as error:
                if error.code is ErrorCode.TIMEOUT and crowded is not None:
                    raise crowded from error  # why there was no answer
                raise
            if reply is None:
                raise _gone(self._path)
            if _is_crowded(reply) and deadline - time.monotonic() > _CROWDED_RETRY_S:
                crowded = LocalError.from_object(reply["error"])
                time.sleep(_CROWDED_RETRY_S)
                continue
            return _result(reply)

    def stream(
        self,
        method: str,
        params: Mapping[str, object] | None = None,
        *,
        endless: bool = False,
    ) -> Iterator[dict[str, object]]:
        """The items of a stream method. `endless`: wait for the next item without a limit.

        LocalError NOT_RUNNING if the daemon goes away before the end.
        """
        deadline = time.monotonic() + self._timeout_s
        with self._request(method, params, deadline) as connection:
            lines = _Lines(connection, self._path)
            while True:
                # Each item has the whole timeout: what counts is that the daemon is alive.
                limit = None if endless else time.monotonic() + self._timeout_s
                reply = lines.next(limit, self._timeout_s)
                if reply is None:
                    raise _gone(self._path)
                if reply.get("end") is True:
                    return
                item = reply.get("item")
                yield item if isinstance(item, dict) else _result(reply)

    def _request(
        self, method: str, params: Mapping[str, object] | None, deadline: float
    ) -> socket.socket:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        line = encode({"id": 1, "method": method, "params": given})
        if len(line) > MAX_REQUEST_BYTES:
            raise LocalError(
                ErrorCode.INVALID_PARAMS,
                f"{method}: {len(line)} bytes are more than a request may have"
                f" ({MAX_REQUEST_BYTES})",
                "put the files into the configuration directory and run the command without them",
            )
        connection = self._connect(deadline)
        try:
            _check_owner(connection, self._path)
            connection.settimeout(_left(deadline, self._timeout_s, self._path))
            connection.sendall(line)
        except TimeoutError as error:
            connection.close()
            raise _late(self._path, self._timeout_s) from error
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was read: the reason stands in what there is to read
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, deadline: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while True:
                connection.settimeout(_left(deadline, self._timeout_s, self._path))
                try:
                    connection.connect(os.fspath(self._path))
                except BlockingIOError:
                    # unix(7): a full accept queue is EAGAIN, not EINPROGRESS; ask again.
                    time.sleep(_RETRY_S)
                    continue
                return connection
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            connection.close()
            raise LocalError(
                ErrorCode.NOT_RUNNING,
                f"no daemon answers on {self._path}",
                "start it with `systemctl start licagent`; the last policy stays enforced"
                " meanwhile",
            ) from error
        except PermissionError as error:
            connection.close()
            raise LocalError(
                ErrorCode.PERMISSION,
                f"no permission to use {self._path}",
                "ask as root, or as a member of the group licagent",
            ) from error
        except TimeoutError as error:
            connection.close()
            raise _late(self._path, self._timeout_s) from error
        except OSError as error:
            connection.close()
            hint = ""
            if error.errno is None or error.errno == errno.ENAMETOOLONG:
                hint = "a socket's path may have 107 bytes: choose a shorter runtime_dir"
            raise LocalError(
                ErrorCode.NOT_RUNNING, f"cannot use {self._path}: {error}", hint
            ) from error
        except BaseException:
            connection.close()
            raise


class _Lines:
    """Reply lines of a connection."""

    def __init__(self, connection: socket.socket, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._buffer = bytearray()
        self._searched = 0

    def next(self, deadline: float | None, timeout_s: float) -> Mapping[str, object] | None:
        """The next reply; None at the end of the connection."""
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return decode_reply(line)
            self._searched = len(self._buffer)
            if self._searched > MAX_REPLY_BYTES:
                raise LocalError(
                    ErrorCode.PROTOCOL, f"the reply is longer than {MAX_REPLY_BYTES} bytes"
                )
            left = None if deadline is None else _left(deadline, timeout_s, self._path)
            self._connection.settimeout(left)
            try:
                chunk = self._connection.recv(_CHUNK_BYTES)
            except TimeoutError as error:
                raise _late(self._path, timeout_s) from error
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            self._buffer += chunk


def _is_crowded(reply: Mapping[str, object]) -> bool:
    """Whether the connection itself was refused for too many others: the request was not read."""
    error = reply.get("error")
    return (
        reply.get("id") is None
        and isinstance(error, dict)
        and error.get("code") == ErrorCode.BUSY.value
    )


def _result(reply: Mapping[str, object]) -> dict[str, object]:
    if "error" in reply:
        raise LocalError.from_object(reply["error"])
    result = reply.get("result")
    if not isinstance(result, dict):
        raise LocalError(ErrorCode.PROTOCOL, "the daemon's reply has neither result nor error")
    version = result.get("schema_version")
    if version != SCHEMA_VERSION:
        raise LocalError(
            ErrorCode.PROTOCOL,
            f"the daemon speaks schema version {version}, this command {SCHEMA_VERSION}",
            "the package was upgraded under a running daemon: restart it",
        )
    return result


def _check_owner(connection: socket.socket, path: Path) -> None:
    """Answers are believed only from root, or from who asks (a test's own daemon)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid = struct.unpack("iII", raw)[1]
    if uid not in (0, os.geteuid()):
        raise LocalError(
            ErrorCode.PERMISSION,
            f"the process behind {path} runs as uid {uid}, not as root",
            "something else took the daemon's place; check runtime_dir",
        )


def _left(deadline: float, timeout_s: float, path: Path) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _late(path, timeout_s)
    return left


def _late(path: Path, timeout_s: float) -> LocalError:
    return LocalError(
        ErrorCode.TIMEOUT,
        f"the daemon behind {path} did not answer within {timeout_s:g} s",
        "its state is unknown, the kernel goes on deciding; see `journalctl -u licagent`",
    )


def _gone(path: Path) -> LocalError:
    return LocalError(
        ErrorCode.NOT_RUNNING,
        f"the daemon behind {path} closed the connection before it had answered",
        "see `journalctl -u licagent`, then try again",
    )
